// What the sampling kernels share: finding the values of a pixel, widening and narrowing them.
#pragma once

#include "../maps/frame.h"
#include "../maps/transpose.h"
#include "sampling.h"

namespace pliant {

// Call f with the number of channels, a constant where there are few: short loops are unrolled.
template <class F>
PLIANT_INLINE void with_width(int64_t n, F&& f) {
  switch (n) {
    case 1:
      return f(std::integral_constant<int64_t, 1>{});
    case 2:
      return f(std::integral_constant<int64_t, 2>{});
    case 3:
      return f(std::integral_constant<int64_t, 3>{});
    case 4:
      return f(std::integral_constant<int64_t, 4>{});
    default:
      return f(n);
  }
}

template <class M>
PLIANT_INLINE const M* corner(const M* map, int64_t pixel, int64_t C, const M* zeros) {
  return pixel >= 0 ? map + pixel * C : zeros;
}

// Convert a sum to the type of columns. bfloat16 is rounded in integers, to the nearest even, NaN to NaN: compilers
// turn that into vectors.
template <class V, class A>
PLIANT_INLINE V narrow(A value) {
  if constexpr (std::is_same_v<V, BFloat16>) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
    return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? nan : nearest), BFloat16::from_bits()};
  } else {
    return V(value);
  }
}

// The values of a framed pixel as one vector.
template <class A>
struct Pixel {
  typedef A Four __attribute__((vector_size(kPixel * sizeof(A))));
};
template <class A>
using Four = typename Pixel<A>::Four;

template <class A, class V>
PLIANT_INLINE Four<A> four(const V* from) {
  if constexpr (std::is_same_v<A, V>) {
    Four<A> v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  } else {
    return Four<A>{A(from[0]), A(from[1]), A(from[2]), A(from[3])};
  }
}

template <class A, class V>
PLIANT_INLINE void put(V* to, Four<A> v) {
  if constexpr (std::is_same_v<A, V>)
    __builtin_memcpy(to, &v, sizeof v);
  else
    for (int i = 0; i < kPixel; ++i) to[i] = narrow<V>(v[i]);
}

// Blend channels [c0, c0 + Width) of one position: K taps, each of which reads `Planes` planes. The sums stay in
// registers: the empty statement keeps compilers from exchanging the loops.
template <int Width, int Planes, class A, class M>
PLIANT_INLINE void blend_block(A* out, const Tap<A, M>* taps, int64_t K, const A* factors, int64_t C, const A* bias,
                               int64_t c0) {
  A sum[Width];
#pragma omp simd
  for (int c = 0; c < Width; ++c) sum[c] = bias[c0 + c];
  for (int64_t k = 0; k < K * Planes; ++k) {
    const M *x0 = taps[k].at[0] + c0, *x1 = taps[k].at[1] + c0, *x2 = taps[k].at[2] + c0, *x3 = taps[k].at[3] + c0;
    const A w0 = taps[k].weight[0], w1 = taps[k].weight[1], w2 = taps[k].weight[2], w3 = taps[k].weight[3];
    const A* factor = factors + k / Planes * C + c0;
    asm volatile("");
#pragma omp simd
    for (int c = 0; c < Width; ++c)
      sum[c] += factor[c] * (w0 * A(x0[c]) + w1 * A(x1[c]) + w2 * A(x2[c]) + w3 * A(x3[c]));
  }
#pragma omp simd
  for (int c = 0; c < Width; ++c) out[c0 + c] = sum[c];
}

}  // namespace pliant
