// Bilinear sampling of channels-last maps: where a sample lies, reading it, scattering to it. The one C++ copy.
#pragma once

#include "common.h"

namespace pliant {

// The four corners of each sample of a tile, one tap of one offset group; one array for each number, so that they are
// found several samples at a time. `pixel` is the corner's index in the map, or −1 outside of it, which reads from a row
// of zeros and scatters nowhere; in a framed map (framed.h) the first alone is kept. `weight` is bilinear, without the
// mask.
template <class A>
struct Samples {
  int64_t* pixel[4];
  A* weight[4];
  A *fy, *fx;  // what the position is past the upper left corner
  A* mask;
};

// Positions of the regular grid, and the offsets from there of one tap.
template <class A>
struct Positions {
  A *row, *column, *y, *x;
  A dy, dx;  // the tap's place in the kernel
};

// Find the corners of `count` samples. Outside rule and derivative convention: see docs/deform_conv2d.md.
template <bool Clamp, bool Frame, class A>
PLIANT_INLINE void locate_impl(const Samples<A>& out, const Positions<A>& from, int64_t count, int64_t H, int64_t W) {
  const A *__restrict row = from.row, *__restrict column = from.column, *__restrict dy = from.y,
          *__restrict dx = from.x;
  const A first = Clamp ? 0 : -1, height = A(H), width = A(W);
  int64_t *__restrict i0 = out.pixel[0], *__restrict i1 = out.pixel[1], *__restrict i2 = out.pixel[2],
                      *__restrict i3 = out.pixel[3];
  A *__restrict w0 = out.weight[0], *__restrict w1 = out.weight[1], *__restrict w2 = out.weight[2],
    *__restrict w3 = out.weight[3], *__restrict below = out.fy, *__restrict beside = out.fx;
  // Two loops, and 1 or 0 in as many bits as floats have: what compilers turn into vectors. False for NaN: only positions
  // that count are converted to integers.
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A y = dy[p] + (row[p] + from.dy), x = dx[p] + (column[p] + from.dx);
    const bool counts = (y >= first) & (y < height) & (x >= first) & (x < width);
    below[p] = counts ? y : A(0);
    beside[p] = counts ? x : A(0);
    w0[p] = counts ? A(1) : A(0);
  }
  // Sides are below 2³¹, so rows and columns are 32 bits wide.
  const int32_t rows = int32_t(H), columns = int32_t(W);
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A fy0 = std::floor(below[p]), fx0 = std::floor(beside[p]), fy = below[p] - fy0, fx = beside[p] - fx0;
    const int32_t counts = w0[p] != 0, top = int32_t(fy0), left = int32_t(fx0);
    if constexpr (Frame) {
      i0[p] = ((int64_t(top) + 2) * (columns + 2) + left + 1) & -counts;
    } else {
      const int32_t b_in = top + 1 < rows, r_in = left + 1 < columns;
      const int32_t t = counts & (top >= 0), b = counts & (Clamp | b_in), l = left >= 0, r = Clamp | r_in;
      // Clamped, the corner beyond the last row is the last row.
      const int64_t at = int64_t(top) * columns + left, down = Clamp ? b_in * columns : columns,
                    across = Clamp ? r_in : 1;
      i0[p] = at | ((t & l) - 1);
      i1[p] = (at + across) | ((t & r) - 1);
      i2[p] = (at + down) | ((b & l) - 1);
      i3[p] = (at + down + across) | ((b & r) - 1);
    }
    w0[p] = (1 - fy) * (1 - fx);
    w1[p] = (1 - fy) * fx;
    w2[p] = fy * (1 - fx);
    w3[p] = fy * fx;
    below[p] = fy;
    beside[p] = fx;
  }
}

// Call f with the number of channels, as a constant where there are few: short loops are unrolled.
template <class F>
PLIANT_INLINE void of_width(int64_t n, F&& f) {
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

// To the type of columns. To bfloat16 in integers, to the nearest even, NaN to NaN: what compilers turn into vectors.
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

// columns[p][0..n) = mask·Σ_i weight_i·corner_i[0..n). `map` and `zeros` point at the first channel of the segment.
// The map may be kept in another type M than that of sums, the columns in another type V.
template <class A, class M, class V>
PLIANT_INLINE void gather_impl(V* columns, int64_t stride, const Samples<A>& at, const M* map, const M* zeros,
                               int64_t C, int64_t channels, int64_t count) {
  of_width(channels, [&](auto n) __attribute__((always_inline)) {
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

// Where K taps of one position read, and how much of it: what `blend` needs of Samples.
template <class A, class M>
struct Tap {
  const M* at[4];
  A weight[4];
};

// out[p][0..n) = bias + Σ_k factors[k]·mask·Σ_i weight_i·corner_i, elementwise over channels: depthwise convolution.
// `taps` has room for K, `factors` and `bias` point at the first channel; set k of the samples is `step` after set k − 1.
template <int Width, class A, class M>
PLIANT_INLINE void blend_block(A* out, const Tap<A, M>* taps, int64_t K, const A* factors, int64_t stride, const A* bias,
                               int64_t c0) {
  A sum[Width];
#pragma omp simd
  for (int c = 0; c < Width; ++c) sum[c] = bias[c0 + c];
  for (int64_t k = 0; k < K; ++k) {
    const M *x0 = taps[k].at[0] + c0, *x1 = taps[k].at[1] + c0, *x2 = taps[k].at[2] + c0, *x3 = taps[k].at[3] + c0;
    const A w0 = taps[k].weight[0], w1 = taps[k].weight[1], w2 = taps[k].weight[2], w3 = taps[k].weight[3];
    const A* factor = factors + k * stride + c0;
    asm volatile("");
#pragma omp simd
    for (int c = 0; c < Width; ++c)
      sum[c] += factor[c] * (w0 * A(x0[c]) + w1 * A(x1[c]) + w2 * A(x2[c]) + w3 * A(x3[c]));
  }
#pragma omp simd
  for (int c = 0; c < Width; ++c) out[c0 + c] = sum[c];
}

template <class A, class M>
PLIANT_INLINE void blend_impl(A* out, int64_t out_stride, const Samples<A>& at, int64_t step, int64_t K,
                              Tap<A, M>* taps, const A* factors, const A* bias, const M* map, const M* zeros,
                              int64_t C, int64_t n, int64_t count) {
  constexpr int kWide = 256 / sizeof(A), kNarrow = 32 / sizeof(A);
  for (int64_t p = 0; p < count; ++p, out += out_stride) {
    for (int64_t k = 0; k < K; ++k)
      for (int i = 0; i < 4; ++i) {
        const int64_t from = k * step + p;
        taps[k].at[i] = corner(map, at.pixel[i][from], C, zeros);
        taps[k].weight[i] = at.mask[from] * at.weight[i][from];
      }
    int64_t c = 0;
    for (; c + kWide <= n; c += kWide) blend_block<kWide>(out, taps, K, factors, C, bias, c);
    for (; c + kNarrow <= n; c += kNarrow) blend_block<kNarrow>(out, taps, K, factors, C, bias, c);
    for (; c < n; ++c) blend_block<1>(out, taps, K, factors, C, bias, c);
  }
}

// dots[i][p] += Σ_c grad[p][c]·corner_i[c]: what the gradients of mask and offset are made of.
template <class A, class M, class V>
PLIANT_INLINE void dots_impl(A* const dots[4], const V* grad, int64_t stride, const Samples<A>& at, const M* map,
                             const M* zeros, int64_t C, int64_t channels, int64_t count) {
  of_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const M* x0 = corner(map, at.pixel[0][p], C, zeros);
      const M* x1 = corner(map, at.pixel[1][p], C, zeros);
      const M* x2 = corner(map, at.pixel[2][p], C, zeros);
      const M* x3 = corner(map, at.pixel[3][p], C, zeros);
      const V* g = grad + p * stride;
      A d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
      for (int64_t c = 0; c < n; ++c) {
        d0 += A(g[c]) * A(x0[c]);
        d1 += A(g[c]) * A(x1[c]);
        d2 += A(g[c]) * A(x2[c]);
        d3 += A(g[c]) * A(x3[c]);
      }
      dots[0][p] += d0;
      dots[1][p] += d1;
      dots[2][p] += d2;
      dots[3][p] += d3;
    }
  });
}

// map[corner_i][0..n) += mask·weight_i·grad[p][0..n), corner by corner: with boundary "clamp" two may be the same.
template <class A, class V>
PLIANT_INLINE void scatter_impl(A* map, const V* grad, int64_t stride, const Samples<A>& at, int64_t C,
                                int64_t channels, int64_t count) {
  of_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const V* g = grad + p * stride;
      for (int i = 0; i < 4; ++i) {
        const int64_t pixel = at.pixel[i][p];
        if (pixel < 0) continue;
        const A w = at.mask[p] * at.weight[i][p];
        A* __restrict out = map + pixel * C;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] += w * A(g[c]);
      }
    }
  });
}

// The kernels of one tap, once per instruction level.
template <class A>
PLIANT_INLINE void locate_any(const Samples<A>& o, const Positions<A>& from, int64_t n, int64_t H, int64_t W, bool clamp,
                              bool frame) {
  if (clamp && frame)
    locate_impl<true, true>(o, from, n, H, W);
  else if (clamp)
    locate_impl<true, false>(o, from, n, H, W);
  else if (frame)
    locate_impl<false, true>(o, from, n, H, W);
  else
    locate_impl<false, false>(o, from, n, H, W);
}
[[maybe_unused]] PLIANT_CLONES static void locate(const Samples<float>& o, const Positions<float>& from, int64_t n,
                                                  int64_t H, int64_t W, bool clamp, bool frame) {
  locate_any(o, from, n, H, W, clamp, frame);
}
[[maybe_unused]] PLIANT_CLONES static void locate(const Samples<double>& o, const Positions<double>& from, int64_t n,
                                                  int64_t H, int64_t W, bool clamp, bool frame) {
  locate_any(o, from, n, H, W, clamp, frame);
}
#define PLIANT_SAMPLES(A, M, V)                                                                                        \
  [[maybe_unused]] PLIANT_CLONES static void gather(V* o, int64_t s, const Samples<A>& at, const M* x, const M* z,     \
                                                    int64_t C, int64_t n, int64_t p) {                                 \
    gather_impl(o, s, at, x, z, C, n, p);                                                                              \
  }                                                                                                                    \
  [[maybe_unused]] PLIANT_CLONES static void dots(A* const d[4], const V* g, int64_t s, const Samples<A>& at,          \
                                                  const M* x, const M* z, int64_t C, int64_t n, int64_t p) {           \
    dots_impl(d, g, s, at, x, z, C, n, p);                                                                             \
  }
#define PLIANT_BLEND(A, M)                                                                                             \
  [[maybe_unused]] PLIANT_CLONES static void blend(A* o, int64_t s, const Samples<A>& at, int64_t step, int64_t K,     \
                                                   Tap<A, M>* taps, const A* f, const A* b, const M* x, const M* z,    \
                                                   int64_t C, int64_t n, int64_t p) {                                  \
    blend_impl(o, s, at, step, K, taps, f, b, x, z, C, n, p);                                                          \
  }
#define PLIANT_SCATTER(A, V)                                                                                           \
  [[maybe_unused]] PLIANT_CLONES static void scatter(A* o, const V* g, int64_t s, const Samples<A>& at, int64_t C,     \
                                                     int64_t n, int64_t p) {                                           \
    scatter_impl(o, g, s, at, C, n, p);                                                                                \
  }
PLIANT_SAMPLES(float, float, float)
PLIANT_SAMPLES(double, double, double)
PLIANT_SAMPLES(float, BFloat16, float)
PLIANT_SAMPLES(float, BFloat16, BFloat16)
PLIANT_BLEND(float, float)
PLIANT_BLEND(double, double)
PLIANT_BLEND(float, BFloat16)
PLIANT_SCATTER(float, float)
PLIANT_SCATTER(double, double)
PLIANT_SCATTER(float, BFloat16)
#undef PLIANT_SAMPLES
#undef PLIANT_BLEND
#undef PLIANT_SCATTER

}  // namespace pliant
