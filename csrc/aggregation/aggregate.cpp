// Aggregate: the weighted sums of samples.
#include "channels.h"

namespace pliant {
namespace {

// Channels [c0, c0 + Width) of one query, whose samples begin at `first`. The sums stay in registers: the empty
// statement keeps compilers from exchanging the loops.
template <int Width, class A, class M>
PLIANT_INLINE void aggregate_block(M* out, const Placed<A>& at, int64_t first, int64_t K, const M* map, const M* zeros,
                                   int64_t row, int64_t c0) {
  A sum[Width];
#pragma omp simd
  for (int c = 0; c < Width; ++c) sum[c] = 0;
  for (int64_t i = first; i < first + K; ++i) {
    const M *x0 = corner(map, at.pixel[0][i], row, zeros) + c0, *x1 = corner(map, at.pixel[1][i], row, zeros) + c0,
            *x2 = corner(map, at.pixel[2][i], row, zeros) + c0, *x3 = corner(map, at.pixel[3][i], row, zeros) + c0;
    const A w0 = at.weight[0][i], w1 = at.weight[1][i], w2 = at.weight[2][i], w3 = at.weight[3][i];
    asm volatile("");
#pragma omp simd
    for (int c = 0; c < Width; ++c)
      sum[c] += (w0 * widen<A>(x0[c]) + w1 * widen<A>(x1[c])) + (w2 * widen<A>(x2[c]) + w3 * widen<A>(x3[c]));
  }
#pragma omp simd
  for (int c = 0; c < Width; ++c) out[c0 + c] = narrow<M>(sum[c]);
}

template <class A, class M>
PLIANT_INLINE void aggregate_tile(M* out, int64_t stride, const Placed<A>& placed, const M* map, const M* zeros,
                                  int64_t row, int64_t D, int64_t K, int64_t queries) {
  const Placed<A> at = placed;  // a copy, whose pointers stay in registers
  for (int64_t q = 0; q < queries; ++q, out += stride) {
    const int64_t next = (q + 1) * K, end = q + 1 < queries ? next + K : next;
    for (int64_t i = next; i < end; ++i)
      for (int j = 0; j < 4; ++j) fetch(corner(map, at.pixel[j][i], row, zeros), D);
    over_channels(D, [=](auto width, int64_t c) __attribute__((always_inline)) {
      aggregate_block<width.value>(out, at, q * K, K, map, zeros, row, c);
    });
  }
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_AGGREGATE, { aggregate_tile(out, stride, at, map, zeros, row, D, K, queries); }, (float, float),
    (double, double), (float, BFloat16), (float, Half))

}  // namespace pliant
