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

// A value of a map as a sum. float16 is widened in integers, which compilers turn into vectors.
template <class A, class M>
PLIANT_INLINE A widen(M value) {
  if constexpr (std::is_same_v<M, Half>) {
    const uint32_t bits = value.x, sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
    // Exponents of float are larger by 112; that of infinity and NaN by twice as much. Below the smallest exponent, a
    // half one above it is subtracted.
    const uint32_t least = 113u << 23;
    const uint32_t large = rest + (rest >= 0x0f800000 ? 224u << 23 : 112u << 23), small = rest + least;
    float s, half;
    __builtin_memcpy(&s, &small, sizeof s);
    __builtin_memcpy(&half, &least, sizeof half);
    s -= half;
    uint32_t low;
    __builtin_memcpy(&low, &s, sizeof low);
    const uint32_t found = sign | (rest < 0x00800000 ? low : large);
    __builtin_memcpy(&s, &found, sizeof s);
    return s;
  } else {
    return A(value);
  }
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

// Sums that run side by side and are added up at the end: a register of AVX-512, two of AVX2. They are arrays, because
// GCC keeps vectors that are longer than a register in memory.
inline constexpr int kLanes = 16;

// The sums over each of four arrays: halves are added, then eight lanes are transposed while they are added, four at a
// time.
template <class A>
PLIANT_INLINE void add_up(A* out, const A* a, const A* b, const A* c, const A* d) {
#ifdef PLIANT_SHUFFLES
  typedef A Eight __attribute__((vector_size(8 * sizeof(A))));
  typedef A Four __attribute__((vector_size(4 * sizeof(A))));
  auto halves = [](const A* from) __attribute__((always_inline)) {
    Eight low, high;
    __builtin_memcpy(&low, from, sizeof low);
    __builtin_memcpy(&high, from + 8, sizeof high);
    return low + high;
  };
#define PLIANT_EXCHANGE(u, v, i, j, k, l) __builtin_shufflevector(u, v, i, j, k, l, i + 4, j + 4, k + 4, l + 4)
  const Eight a8 = halves(a), b8 = halves(b), c8 = halves(c), d8 = halves(d);
  const Eight ab = PLIANT_EXCHANGE(a8, b8, 0, 8, 1, 9) + PLIANT_EXCHANGE(a8, b8, 2, 10, 3, 11);
  const Eight cd = PLIANT_EXCHANGE(c8, d8, 0, 8, 1, 9) + PLIANT_EXCHANGE(c8, d8, 2, 10, 3, 11);
  const Eight sums = PLIANT_EXCHANGE(ab, cd, 0, 1, 8, 9) + PLIANT_EXCHANGE(ab, cd, 2, 3, 10, 11);
#undef PLIANT_EXCHANGE
  const Four total = __builtin_shufflevector(sums, sums, 0, 1, 2, 3) + __builtin_shufflevector(sums, sums, 4, 5, 6, 7);
  __builtin_memcpy(out, &total, sizeof total);
#else
  const A* const all[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    out[i] = 0;
    for (int l = 0; l < kLanes; ++l) out[i] += all[i][l];
  }
#endif
}

// How many samples' dots are kept until their gradients are computed from them.
inline constexpr int64_t kTogether = 16;

// dots[j] = Σ_c g[c]·x_j[c] for the corners j of one sample.
template <class A, class M>
PLIANT_INLINE void dot(A dots[4], const A* g, const M* x0, const M* x1, const M* x2, const M* x3, int64_t D) {
  int64_t c = 0;
  if (D >= kLanes) {
    A s0[kLanes]{}, s1[kLanes]{}, s2[kLanes]{}, s3[kLanes]{};
    for (; c + kLanes <= D; c += kLanes)
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const A v = g[c + l];
        s0[l] += v * widen<A>(x0[c + l]);
        s1[l] += v * widen<A>(x1[c + l]);
        s2[l] += v * widen<A>(x2[c + l]);
        s3[l] += v * widen<A>(x3[c + l]);
      }
    add_up(dots, s0, s1, s2, s3);
  } else {
    dots[0] = dots[1] = dots[2] = dots[3] = 0;
  }
  for (; c < D; ++c) {
    const A v = g[c];
    dots[0] += v * widen<A>(x0[c]);
    dots[1] += v * widen<A>(x1[c]);
    dots[2] += v * widen<A>(x2[c]);
    dots[3] += v * widen<A>(x3[c]);
  }
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
