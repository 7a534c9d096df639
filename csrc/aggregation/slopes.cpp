// Slopes: products of the output's gradient with the corners of samples, and what they make of factors and positions.
#include "channels.h"

namespace pliant {
namespace {

template <class A, class M>
PLIANT_INLINE void slopes_tile(A* factor, A* x, A* y, const A* grad, int64_t stride, const Placed<A>& placed,
                               const A* factors, const Corners<M>& given, int64_t channels, int64_t K,
                               int64_t queries) {
  const Placed<A> at = placed;  // copies, whose pointers stay in registers
  const Corners<M> corners = given;
  const int64_t all = queries * K;
  A dots[4 * kTogether];
  with_constant(channels, [&](auto D) __attribute__((always_inline)) {
    const A* g = grad;
    for (int64_t first = 0, k = 0; first < all; first += kTogether) {
      const int64_t count = std::min(kTogether, all - first);
      for (int64_t i = 0; i < count; ++i) {
        if (corners.far) fetch_corners(corners, std::min(first + i + kAhead, all - 1), 0, D);
        dot(dots + 4 * i, g, corners.at[0][first + i], corners.at[1][first + i], corners.at[2][first + i],
            corners.at[3][first + i], D);
        if (++k == K) k = 0, g += stride;
      }
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A d0 = dots[4 * i], d1 = dots[4 * i + 1], d2 = dots[4 * i + 2], d3 = dots[4 * i + 3];
        const A fx = at.fx[first + i], fy = at.fy[first + i], of = factors[first + i];
        const A top = d0 + fx * (d1 - d0), bottom = d2 + fx * (d3 - d2);
        factor[first + i] = top + fy * (bottom - top);
        x[first + i] = of * ((1 - fy) * (d1 - d0) + fy * (d3 - d2));
        y[first + i] = of * (bottom - top);
      }
    }
  });
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_SLOPES, { slopes_tile(factor, x, y, grad, stride, placed, factors, corners, D, K, queries); },
    (float, float), (double, double), (float, BFloat16), (float, Half))

}  // namespace pliant
