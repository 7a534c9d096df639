// The elementwise kernels of depthwise convolution.
#include "products.h"

namespace pliant {
namespace {

template <class A>
PLIANT_INLINE void spread_rows(A* columns, const A* rows, int64_t stride, const A* factors, int64_t K, int64_t C,
                               int64_t count) {
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < K; ++k) {
      A* __restrict to = columns + (p * K + k) * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] = rows[p * stride + c] * factors[k * C + c];
    }
}

template <class A>
PLIANT_INLINE void collect_rows(A* sums, const A* rows, int64_t stride, const A* columns, int64_t K, int64_t C,
                                int64_t count) {
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < K; ++k) {
      A* __restrict to = sums + k * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] += rows[p * stride + c] * columns[(p * K + k) * C + c];
    }
}

}  // namespace

PLIANT_KERNEL(PLIANT_SPREAD, { spread_rows(columns, rows, stride, factors, K, C, count); }, (float), (double))
PLIANT_KERNEL(PLIANT_COLLECT, { collect_rows(sums, rows, stride, columns, K, C, count); }, (float), (double))

}  // namespace pliant
