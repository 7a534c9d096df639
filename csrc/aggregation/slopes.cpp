// Slopes: products of the output's gradient with the corners of samples, and what they make of factors and positions.
#include "channels.h"

namespace pliant {
namespace {

template <class A, class M>
PLIANT_INLINE void slopes_tile(A* factor, A* x, A* y, const A* grad, int64_t stride, const Placed<A>& placed,
                               const A* factors, const Corners<M>& given, int64_t D, int64_t K, int64_t queries) {
  const Placed<A> at = placed;  // copies, whose pointers stay in registers
  const Corners<M> corners = given;
  for (int64_t q = 0; q < queries; ++q) {
    const A* g = grad + q * stride;
    fetch_next(corners, q, K, queries, D);
    for (int64_t i = q * K; i < (q + 1) * K; ++i) {
      const M *x0 = corners.at[0][i], *x1 = corners.at[1][i], *x2 = corners.at[2][i], *x3 = corners.at[3][i];
      A d0 = 0, d1 = 0, d2 = 0, d3 = 0;
      over_channels(D, [&](auto width, int64_t c0) __attribute__((always_inline)) {
        A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int c = 0; c < width; ++c) {
          const A v = g[c0 + c];
          s0 += v * widen<A>(x0[c0 + c]);
          s1 += v * widen<A>(x1[c0 + c]);
          s2 += v * widen<A>(x2[c0 + c]);
          s3 += v * widen<A>(x3[c0 + c]);
        }
        d0 += s0, d1 += s1, d2 += s2, d3 += s3;
      });
      const A fx = at.fx[i], fy = at.fy[i], top = d0 + fx * (d1 - d0), bottom = d2 + fx * (d3 - d2);
      factor[i] = top + fy * (bottom - top);
      x[i] = factors[i] * ((1 - fy) * (d1 - d0) + fy * (d3 - d2));
      y[i] = factors[i] * (bottom - top);
    }
  }
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_SLOPES, { slopes_tile(factor, x, y, grad, stride, placed, factors, corners, D, K, queries); },
    (float, float), (double, double), (float, BFloat16), (float, Half))

}  // namespace pliant
