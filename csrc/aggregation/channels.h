// Loops over the channels of a sample.
#pragma once

#include "../sampling/rows.h"
#include "samples.h"

namespace pliant {

// Call f(width, c) for blocks of channels [c, c + width) that cover n channels. The width is a compile-time constant,
// so that sums of a block stay in registers.
template <class F>
PLIANT_INLINE void over_channels(int64_t n, F&& f) {
  int64_t c = 0;
  for (; c + 64 <= n; c += 64) f(std::integral_constant<int, 64>{}, c);
  if (c + 32 <= n) f(std::integral_constant<int, 32>{}, c), c += 32;
  if (c + 16 <= n) f(std::integral_constant<int, 16>{}, c), c += 16;
  if (c + 8 <= n) f(std::integral_constant<int, 8>{}, c), c += 8;
  if (c + 4 <= n) f(std::integral_constant<int, 4>{}, c), c += 4;
  for (; c < n; ++c) f(std::integral_constant<int, 1>{}, c);
}

// Call f with a number of channels, a constant where it is a common one: loops over them are unrolled.
template <class F>
PLIANT_INLINE void with_constant(int64_t n, F&& f) {
  if (n == 16) return f(std::integral_constant<int64_t, 16>{});
  if (n == 32) return f(std::integral_constant<int64_t, 32>{});
  f(n);
}

// Fetch D channels into the cache.
template <class M>
PLIANT_INLINE void fetch(const M* corner, int64_t D) {
  for (int64_t c = 0; c < D; c += 64 / int64_t(sizeof(M))) __builtin_prefetch(corner + c);
}

// Fetch n values of `count` rows.
template <class M>
PLIANT_INLINE void fetch_rows(const M* from, int64_t stride, int64_t n, int64_t count) {
  for (int64_t i = 0; i < count; ++i, from += stride) fetch(from, n);
}

// Samples between the one that is read and the one that is fetched; what others cost is in benchmarks/NOTES.md.
inline constexpr int64_t kAhead = 4;

// Fetch D channels, from c on, of the corners of sample i.
template <class M>
PLIANT_INLINE void fetch_corners(const Corners<M>& corners, int64_t i, int64_t c, int64_t D) {
  for (int j = 0; j < 4; ++j) fetch(corners.at[j][i] + c, D);
}

}  // namespace pliant
