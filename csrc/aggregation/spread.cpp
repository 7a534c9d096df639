// Spread: the output's gradient, added to the corners of samples.
#include "channels.h"

namespace pliant {
namespace {

template <class A>
PLIANT_INLINE void spread_tile(A* map, int64_t row, const A* grad, int64_t stride, const Placed<A>& placed,
                               int64_t channels, int64_t K, int64_t queries, int32_t low, int32_t high, bool far) {
  const Placed<A> at = placed;  // a copy, whose pointers stay in registers
  const uint32_t size = uint32_t(high - low);
  with_constant(channels, [&](auto D) __attribute__((always_inline)) {
    const int64_t all = queries * K;
    const A* g = grad;
    for (int64_t i = 0, k = 0; i < all; ++i) {
      for (int j = 0; far && j < 4; ++j) {
        const int32_t next = at.pixel[j][std::min(i + kAhead, all - 1)];
        if (uint32_t(next - low) < size) fetch(map + next * row, D);
      }
      for (int j = 0; j < 4; ++j) {
        const int32_t pixel = at.pixel[j][i];
        if (uint32_t(pixel - low) >= size) continue;
        const A w = at.weight[j][i];
        A* __restrict const out = map + pixel * row;
        over_channels(D, [=](auto width, int64_t c0) __attribute__((always_inline)) {
#pragma omp simd
          for (int c = 0; c < width; ++c) out[c0 + c] += w * g[c0 + c];
        });
      }
      if (++k == K) k = 0, g += stride;
    }
  });
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_SPREAD, { spread_tile(map, row, grad, stride, at, D, K, queries, low, high, far); }, (float), (double))

}  // namespace pliant
