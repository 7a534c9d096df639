// Aggregate: the weighted sums of samples.
#include "channels.h"

namespace pliant {
namespace {

// Channels [c0, c0 + Width) of one query, whose samples begin at `first`; the tile has `all`. The sums stay in
// registers: the empty statement keeps compilers from exchanging the loops.
template <int Width, class A, class M>
PLIANT_INLINE void aggregate_block(M* out, const Placed<A>& at, const Corners<M>& corners, int64_t first, int64_t K,
                                   int64_t all, int64_t c0) {
  A sum[Width];
#pragma omp simd
  for (int c = 0; c < Width; ++c) sum[c] = 0;
  for (int64_t i = first; i < first + K; ++i) {
    const M *x0 = corners.at[0][i] + c0, *x1 = corners.at[1][i] + c0, *x2 = corners.at[2][i] + c0,
            *x3 = corners.at[3][i] + c0;
    const A w0 = at.weight[0][i], w1 = at.weight[1][i], w2 = at.weight[2][i], w3 = at.weight[3][i];
    asm volatile("");
    if (corners.far) fetch_corners(corners, std::min(i + kAhead, all - 1), c0, Width);
#pragma omp simd
    for (int c = 0; c < Width; ++c)
      sum[c] += (w0 * widen<A>(x0[c]) + w1 * widen<A>(x1[c])) + (w2 * widen<A>(x2[c]) + w3 * widen<A>(x3[c]));
  }
#pragma omp simd
  for (int c = 0; c < Width; ++c) out[c0 + c] = narrow<M>(sum[c]);
}

template <class A, class M>
PLIANT_INLINE void aggregate_tile(M* out, int64_t stride, const Placed<A>& placed, const Corners<M>& given,
                                  int64_t channels, int64_t K, int64_t queries) {
  const Placed<A> at = placed;  // copies, whose pointers stay in registers
  const Corners<M> corners = given;
  with_constant(channels, [&](auto D) __attribute__((always_inline)) {
    for (int64_t q = 0; q < queries; ++q, out += stride) {
      over_channels(D, [=](auto width, int64_t c) __attribute__((always_inline)) {
        aggregate_block<width.value>(out, at, corners, q * K, K, queries * K, c);
      });
    }
  });
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_AGGREGATE, { aggregate_tile(out, stride, placed, corners, D, K, queries); }, (float, float),
    (double, double), (float, BFloat16), (float, Half))

}  // namespace pliant
