// Dots: products of the gradient of columns with the corners of the samples.
#include "rows.h"

namespace pliant {
namespace {

template <class A, class M>
PLIANT_INLINE void dots_map(A* const sums[4], const A* grad, int64_t stride, const Samples<A>& at, const M* map,
                            const M* zeros, int64_t C, int64_t channels, int64_t count) {
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const M* x0 = corner(map, at.pixel[0][p], C, zeros);
      const M* x1 = corner(map, at.pixel[1][p], C, zeros);
      const M* x2 = corner(map, at.pixel[2][p], C, zeros);
      const M* x3 = corner(map, at.pixel[3][p], C, zeros);
      const A* g = grad + p * stride;
      A d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
      for (int64_t c = 0; c < n; ++c) {
        d0 += g[c] * A(x0[c]);
        d1 += g[c] * A(x1[c]);
        d2 += g[c] * A(x2[c]);
        d3 += g[c] * A(x3[c]);
      }
      sums[0][p] += d0;
      sums[1][p] += d1;
      sums[2][p] += d2;
      sums[3][p] += d3;
    }
  });
}

// The sums over each of four vectors.
template <class A>
PLIANT_INLINE Four<A> lane_sums(Four<A> a, Four<A> b, Four<A> c, Four<A> d) {
#ifdef PLIANT_SHUFFLES
  const Four<A> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four<A> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
  return Four<A>{a[0] + a[1] + a[2] + a[3], b[0] + b[1] + b[2] + b[3], c[0] + c[1] + c[2] + c[3],
                 d[0] + d[1] + d[2] + d[3]};
#endif
}

// Four samples at a time.
template <class A>
PLIANT_INLINE void dots_frame(A* const sums[4], const A* grad, int64_t stride, const Samples<A>& samples,
                              const A* frame, int64_t row, int64_t channels, int64_t count) {
  const int64_t* const pixel = samples.pixel[0];
  A* const out[4] = {sums[0], sums[1], sums[2], sums[3]};
  const int64_t corner[4] = {0, kPixel, row, row + kPixel};
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    // Values past the channels belong to another tap or were never written.
    auto gradient = [&](int64_t p) __attribute__((always_inline)) {
      Four<A> g = four<A>(grad + p * stride);
      for (int64_t c = n; c < kPixel; ++c) g[c] = 0;
      return g;
    };
    int64_t p = 0;
    for (; p + 4 <= count; p += 4) {
      const Four<A> g0 = gradient(p), g1 = gradient(p + 1), g2 = gradient(p + 2), g3 = gradient(p + 3);
      const A *x0 = frame + pixel[p] * kPixel, *x1 = frame + pixel[p + 1] * kPixel, *x2 = frame + pixel[p + 2] * kPixel,
              *x3 = frame + pixel[p + 3] * kPixel;
      for (int i = 0; i < 4; ++i)
        put<A>(out[i] + p, lane_sums<A>(g0 * four<A>(x0 + corner[i]), g1 * four<A>(x1 + corner[i]),
                                        g2 * four<A>(x2 + corner[i]), g3 * four<A>(x3 + corner[i])));
    }
    for (; p < count; ++p) {
      const Four<A> g = gradient(p);
      for (int i = 0; i < 4; ++i) {
        const Four<A> product = g * four<A>(frame + pixel[p] * kPixel + corner[i]);
        out[i][p] = product[0] + product[1] + product[2] + product[3];
      }
    }
  });
}

}  // namespace

PLIANT_KERNEL(PLIANT_DOTS, { dots_map(sums, grad, stride, at, map, zeros, C, n, count); }, (float, float),
              (double, double), (float, BFloat16))
PLIANT_KERNEL(PLIANT_DOTS_FRAME, { dots_frame(sums, grad, stride, at, frame, row, n, count); }, (float), (double))

}  // namespace pliant
