// Read coordinates and factors of a tile, and write their gradients.
#include "channels.h"

namespace pliant {
namespace {

template <class A, class V>
PLIANT_INLINE void take_pairs(A* __restrict x, A* __restrict y, const V* from, int64_t stride, int64_t K,
                              int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, from += stride, x += K, y += K)
    for (int64_t k = 0; k < K; ++k) x[k] = widen<A>(from[2 * k]), y[k] = widen<A>(from[2 * k + 1]);
}

template <class A, class V>
PLIANT_INLINE void take_values(A* __restrict values, const V* from, int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, from += stride, values += K)
    for (int64_t k = 0; k < K; ++k) values[k] = widen<A>(from[k]);
}

template <class A, class V>
PLIANT_INLINE void give_pairs(V* __restrict to, const A* x, const A* y, const A* scale_x, const A* scale_y,
                              int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, to += stride, x += K, y += K)
    for (int64_t k = 0; k < K; ++k) {
      to[2 * k] = narrow<V>(scale_x[k] * x[k]);
      to[2 * k + 1] = narrow<V>(scale_y[k] * y[k]);
    }
}

template <class A, class V>
PLIANT_INLINE void give_values(V* __restrict to, const A* values, int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, to += stride, values += K)
    for (int64_t k = 0; k < K; ++k) to[k] = narrow<V>(values[k]);
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_TAKE_PAIRS, { take_pairs(x, y, from, stride, K, queries); }, (float, float), (double, double),
    (float, BFloat16), (float, Half))
PLIANT_KERNEL(
    PLIANT_TAKE, { take_values(values, from, stride, K, queries); }, (float, float), (double, double),
    (float, BFloat16), (float, Half))
PLIANT_KERNEL(
    PLIANT_GIVE_PAIRS, { give_pairs(to, x, y, scale_x, scale_y, stride, K, queries); }, (float, float),
    (double, double), (float, BFloat16), (float, Half))
PLIANT_KERNEL(
    PLIANT_GIVE, { give_values(to, values, stride, K, queries); }, (float, float), (double, double), (float, BFloat16),
    (float, Half))

}  // namespace pliant
