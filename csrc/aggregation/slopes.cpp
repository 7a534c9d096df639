// Slopes: products of the output's gradient with the corners of samples, and what they make of factors and positions.
#include "channels.h"

namespace pliant {
namespace {

// Sixteen sums, which are added up at the end: a register of AVX-512, two of AVX2.
constexpr int kLanes = 16;
template <class A>
struct Vector {
  typedef A Lanes __attribute__((vector_size(kLanes * sizeof(A))));
  typedef A Four __attribute__((vector_size(4 * sizeof(A))));
};
template <class A>
using Lanes = typename Vector<A>::Lanes;

template <class A, class M>
PLIANT_INLINE Lanes<A> lanes(const M* from) {
  A wide[kLanes];
#pragma omp simd
  for (int c = 0; c < kLanes; ++c) wide[c] = widen<A>(from[c]);
  Lanes<A> found;
  __builtin_memcpy(&found, wide, sizeof found);
  return found;
}

// The sums over each of four vectors: they are transposed while they are added, four at a time.
template <class A>
PLIANT_INLINE void add_up(A* out, Lanes<A> a, Lanes<A> b, Lanes<A> c, Lanes<A> d) {
#ifdef PLIANT_SHUFFLES
#define PLIANT_EVEN(u, v) __builtin_shufflevector(u, v, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define PLIANT_ODD(u, v) __builtin_shufflevector(u, v, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define PLIANT_LOW(u, v) __builtin_shufflevector(u, v, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define PLIANT_HIGH(u, v) __builtin_shufflevector(u, v, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
  const Lanes<A> ab = PLIANT_EVEN(a, b) + PLIANT_ODD(a, b), cd = PLIANT_EVEN(c, d) + PLIANT_ODD(c, d);
  const Lanes<A> sums = PLIANT_LOW(ab, cd) + PLIANT_HIGH(ab, cd);
#undef PLIANT_EVEN
#undef PLIANT_ODD
#undef PLIANT_LOW
#undef PLIANT_HIGH
  typename Vector<A>::Four part[4];
  __builtin_memcpy(part, &sums, sizeof part);
  part[0] = (part[0] + part[1]) + (part[2] + part[3]);
  __builtin_memcpy(out, part, sizeof part[0]);
#else
  const Lanes<A>* const all[] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) {
    out[i] = 0;
    for (int l = 0; l < kLanes; ++l) out[i] += (*all[i])[l];
  }
#endif
}

// dots[j] = Σ_c g[c]·x_j[c] for the corners j of one sample.
template <class A, class M>
PLIANT_INLINE void dot(A dots[4], const A* g, const M* x0, const M* x1, const M* x2, const M* x3, int64_t D) {
  int64_t c = 0;
  if (D >= kLanes) {
    Lanes<A> s0{}, s1{}, s2{}, s3{};
    for (; c + kLanes <= D; c += kLanes) {
      const Lanes<A> v = lanes<A>(g + c);
      s0 += v * lanes<A>(x0 + c);
      s1 += v * lanes<A>(x1 + c);
      s2 += v * lanes<A>(x2 + c);
      s3 += v * lanes<A>(x3 + c);
    }
    add_up<A>(dots, s0, s1, s2, s3);
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

template <class A, class M>
PLIANT_INLINE void slopes_tile(A* factor, A* x, A* y, const A* grad, int64_t stride, const Placed<A>& placed,
                               const A* factors, const Corners<M>& given, int64_t channels, int64_t K,
                               int64_t queries) {
  const Placed<A> at = placed;  // copies, whose pointers stay in registers
  const Corners<M> corners = given;
  constexpr int64_t kTogether = 16;
  const int64_t all = queries * K;
  A dots[4 * kTogether];
  with_constant(channels, [&](auto D) __attribute__((always_inline)) {
    const A* g = grad;
    for (int64_t first = 0, k = 0; first < all; first += kTogether) {
      const int64_t count = std::min(kTogether, all - first);
      fetch_next(corners, first, count, all, D);
      for (int64_t i = 0; i < count; ++i) {
        dot(dots + 4 * i, g, corners.at[0][first + i], corners.at[1][first + i], corners.at[2][first + i],
            corners.at[3][first + i], D);
        if (++k == K) k = 0, g += stride;
      }
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A d0 = dots[4 * i], d1 = dots[4 * i + 1], d2 = dots[4 * i + 2], d3 = dots[4 * i + 3];
        const A fx = at.fx[first + i], fy = at.fy[first + i], of = factors[first + i];
        const A top = d0 + fx * (d1 - d0), bottom = d2 + fx * (d3 - d2);
        factor[first + i] = top + fy * (bottom - top);
        x[first + i] = of * ((1 - fy) * (d1 - d0) + fy * (d3 - d2));
        y[first + i] = of * (bottom - top);
      }
    }
  });
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_SLOPES, { slopes_tile(factor, x, y, grad, stride, placed, factors, corners, D, K, queries); },
    (float, float), (double, double), (float, BFloat16), (float, Half))

}  // namespace pliant
