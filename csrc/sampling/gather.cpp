// Gather: the values of samples, written as rows of columns (gather) or summed over taps (blend).
#include "rows.h"

namespace pliant {
namespace {

template <class A, class M, class V>
PLIANT_INLINE void gather_map(V* columns, int64_t stride, const Samples<A>& at, const M* map, const M* zeros, int64_t C,
                              int64_t channels, int64_t count) {
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const A m = at.mask[p];
      const A w0 = m * at.weight[0][p], w1 = m * at.weight[1][p], w2 = m * at.weight[2][p], w3 = m * at.weight[3][p];
      const M* x0 = corner(map, at.pixel[0][p], C, zeros);
      const M* x1 = corner(map, at.pixel[1][p], C, zeros);
      const M* x2 = corner(map, at.pixel[2][p], C, zeros);
      const M* x3 = corner(map, at.pixel[3][p], C, zeros);
      V* __restrict out = columns + p * stride;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) out[c] = narrow<V>(w0 * A(x0[c]) + w1 * A(x1[c]) + w2 * A(x2[c]) + w3 * A(x3[c]));
    }
  });
}

template <class A, class V>
PLIANT_INLINE void gather_frame(V* columns, int64_t stride, const Samples<A>& samples, const A* frame, int64_t row,
                                int64_t count) {
  const Samples<A> at = samples;  // a copy, whose pointers stay in registers
  for (int64_t p = 0; p < count; ++p) {
    const A* x = frame + at.pixel[0][p] * kPixel;
    const A* below = x + row;
    const Four<A> top = at.weight[0][p] * four<A>(x) + at.weight[1][p] * four<A>(x + kPixel);
    const Four<A> bottom = at.weight[2][p] * four<A>(below) + at.weight[3][p] * four<A>(below + kPixel);
    put<A>(columns + p * stride, at.mask[p] * (top + bottom));
  }
}

template <class A, class M>
PLIANT_INLINE void blend_map(A* out, int64_t stride, const Samples<A>& at, int64_t set, int64_t K, Tap<A, M>* taps,
                             const A* factors, const A* bias, const M* map, const M* zeros, int64_t C, int64_t n,
                             int64_t count) {
  for (int64_t p = 0; p < count; ++p, out += stride) {
    for (int64_t k = 0; k < K; ++k)
      for (int i = 0; i < 4; ++i) {
        const int64_t from = k * set + p;
        taps[k].at[i] = corner(map, at.pixel[i][from], C, zeros);
        taps[k].weight[i] = at.mask[from] * at.weight[i][from];
      }
    // Captured by value, so that the pointers stay in registers.
    in_blocks<A>(n, [=](auto width, int64_t c) __attribute__((always_inline)) {
      blend_block<width.value, 1>(out, taps, K, factors, C, bias, c);
    });
  }
}

}  // namespace

PLIANT_KERNEL(PLIANT_GATHER, { gather_map(columns, stride, at, map, zeros, C, n, count); }, (float, float, float),
              (double, double, double), (float, BFloat16, float), (float, BFloat16, BFloat16))
PLIANT_KERNEL(PLIANT_GATHER_FRAME, { gather_frame(columns, stride, at, frame, row, count); }, (float, float),
              (double, double), (float, BFloat16))
PLIANT_KERNEL(PLIANT_BLEND, { blend_map(out, stride, at, set, K, taps, factors, bias, map, zeros, C, n, count); },
              (float, float), (double, double), (float, BFloat16))

}  // namespace pliant
