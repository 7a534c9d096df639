// Scatter: the gradient of columns, added to the corners of the samples.
#include "rows.h"

namespace pliant {
namespace {

// Corner by corner: with boundary "clamp" two corners may be the same pixel.
template <class A>
PLIANT_INLINE void scatter_map(A* map, const A* grad, int64_t stride, const Samples<A>& at, int planes, int64_t C,
                               int64_t channels, int64_t count) {
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const A* g = grad + p * stride;
      for (int i = 0; i < 4 * planes; ++i) {
        const int64_t pixel = i < 4 ? at.pixel[i][p] : at.far_pixel[i - 4][p];
        if (pixel < 0) continue;
        const A w = (i < 4 ? at.mask : at.far_mask)[p] * at.weight[i % 4][p];
        A* __restrict out = map + pixel * C;
        int64_t c = 0;
        for (; c + kLanes <= n; c += kLanes)
#pragma omp simd
          for (int l = 0; l < kLanes; ++l) out[c + l] += w * g[c + l];
        for (; c < n; ++c) out[c] += w * g[c];
      }
    }
  });
}

template <class A>
PLIANT_INLINE void scatter_frame(A* frame, const A* grad, int64_t stride, const Samples<A>& samples, int64_t row,
                                 int64_t count) {
  const Samples<A> at = samples;  // a copy, whose pointers stay in registers
  for (int64_t p = 0; p < count; ++p) {
    const Four<A> g = at.mask[p] * four<A>(grad + p * stride);
    A* const x = frame + at.pixel[0][p] * kPixel;
    A* const corner[4] = {x, x + kPixel, x + row, x + row + kPixel};
    for (int i = 0; i < 4; ++i) put<A>(corner[i], four<A>(corner[i]) + at.weight[i][p] * g);
  }
}

}  // namespace

PLIANT_KERNEL(PLIANT_SCATTER, { scatter_map(map, grad, stride, at, planes, C, n, count); }, (float), (double))
PLIANT_KERNEL(PLIANT_SCATTER_FRAME, { scatter_frame(frame, grad, stride, at, row, count); }, (float), (double))

}  // namespace pliant
