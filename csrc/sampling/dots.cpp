// Dots: products of the gradient of columns with the corners of the samples.
#include "rows.h"

namespace pliant {
namespace {

template <class A, class M>
PLIANT_INLINE void dots_map(A* const* sums, const A* grad, int64_t stride, const Samples<A>& at, int planes,
                            const M* map, const M* zeros, int64_t C, int64_t channels, int64_t count) {
  A found[4 * kTogether];
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p0 = 0; p0 < count; p0 += kTogether) {
      const int64_t size = std::min(kTogether, count - p0);
      for (int plane = 0; plane < planes; ++plane) {
        const int64_t* const* const pixel = plane == 0 ? at.pixel : at.far_pixel;
        const int64_t *i0 = pixel[0] + p0, *i1 = pixel[1] + p0, *i2 = pixel[2] + p0, *i3 = pixel[3] + p0;
        for (int64_t i = 0; i < size; ++i)
          dot(found + 4 * i, grad + (p0 + i) * stride, corner(map, i0[i], C, zeros), corner(map, i1[i], C, zeros),
              corner(map, i2[i], C, zeros), corner(map, i3[i], C, zeros), n);
        A *const s0 = sums[4 * plane] + p0, *const s1 = sums[4 * plane + 1] + p0, *const s2 = sums[4 * plane + 2] + p0,
                 *const s3 = sums[4 * plane + 3] + p0;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          s0[i] += found[4 * i];
          s1[i] += found[4 * i + 1];
          s2[i] += found[4 * i + 2];
          s3[i] += found[4 * i + 3];
        }
      }
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

PLIANT_KERNEL(
    PLIANT_DOTS, { dots_map(sums, grad, stride, at, planes, map, zeros, C, n, count); }, (float, float),
    (double, double), (float, BFloat16))
PLIANT_KERNEL(PLIANT_DOTS_FRAME, { dots_frame(sums, grad, stride, at, frame, row, n, count); }, (float), (double))

}  // namespace pliant
