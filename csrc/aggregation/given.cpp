// Read coordinates and factors of a tile, and write their gradients.
#include "channels.h"

namespace pliant {
namespace {

// Blocks of a constant number of values, because samples are few: 4 to 16 per query.
template <class A, class V>
PLIANT_INLINE void take_pairs(A* x, A* y, const V* from, int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, from += stride, x += K, y += K)
    over_channels(K, [=](auto width, int64_t k0) __attribute__((always_inline)) {
      const V* const pairs = from + 2 * k0;
      A even[width.value], odd[width.value];
#pragma omp simd
      for (int k = 0; k < width; ++k) even[k] = widen<A>(pairs[2 * k]), odd[k] = widen<A>(pairs[2 * k + 1]);
      __builtin_memcpy(x + k0, even, sizeof even);
      __builtin_memcpy(y + k0, odd, sizeof odd);
    });
}

template <class A, class V>
PLIANT_INLINE void take_values(A* values, const V* from, int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, from += stride, values += K)
    over_channels(K, [=](auto width, int64_t k0) __attribute__((always_inline)) {
      A wide[width.value];
#pragma omp simd
      for (int k = 0; k < width; ++k) wide[k] = widen<A>(from[k0 + k]);
      __builtin_memcpy(values + k0, wide, sizeof wide);
    });
}

template <class A, class V>
PLIANT_INLINE void give_pairs(V* to, const A* x, const A* y, const A* scale_x, const A* scale_y, int64_t stride,
                              int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, to += stride, x += K, y += K)
    over_channels(K, [=](auto width, int64_t k0) __attribute__((always_inline)) {
      V pairs[2 * width.value];
#pragma omp simd
      for (int k = 0; k < width; ++k) {
        pairs[2 * k] = narrow<V>(scale_x[k0 + k] * x[k0 + k]);
        pairs[2 * k + 1] = narrow<V>(scale_y[k0 + k] * y[k0 + k]);
      }
      __builtin_memcpy(to + 2 * k0, pairs, sizeof pairs);
    });
}

template <class A, class V>
PLIANT_INLINE void give_values(V* to, const A* values, int64_t stride, int64_t K, int64_t queries) {
  for (int64_t q = 0; q < queries; ++q, to += stride, values += K)
    over_channels(K, [=](auto width, int64_t k0) __attribute__((always_inline)) {
      V found[width.value];
#pragma omp simd
      for (int k = 0; k < width; ++k) found[k] = narrow<V>(values[k0 + k]);
      __builtin_memcpy(to + k0, found, sizeof found);
    });
}

template <class M>
PLIANT_INLINE void copy_pixels(M* to, int64_t to_row, const M* from, int64_t from_row, int64_t n, int64_t count) {
  with_constant(n, [&](auto width) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p, to += to_row, from += from_row) {
      const M* __restrict x = from;
      M* __restrict y = to;
      for (int64_t c = 0; c < width; ++c) y[c] = x[c];
    }
  });
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_COPY, { copy_pixels(to, to_row, from, from_row, n, count); }, (float), (double), (BFloat16), (Half))
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
