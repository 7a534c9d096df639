// Bilinear sampling of channels-last maps: where a sample lies, reading it, scattering to it. The one C++ copy.
#pragma once

#include "common.h"

namespace pliant {

// The four corners of each sample of a tile, one tap of one offset group. `pixel` is the corner's index in the map, or
// −1 outside of it, which reads from a row of zeros and scatters nowhere. `weight` is bilinear, without the mask.
template <class A>
struct Samples {
  int64_t (*pixel)[4];
  A (*weight)[4];
  A (*fraction)[2];  // fy, fx: what the position is past the upper left corner
  A* mask;
};

// Find the corners of `count` samples at (y, x). Outside rule and derivative convention: see docs/deform_conv2d.md.
template <class A>
PLIANT_INLINE void locate_impl(const Samples<A>& out, const A* y, const A* x, int64_t count, int64_t H, int64_t W,
                               bool clamp) {
  const A first = clamp ? 0 : -1;
  for (int64_t p = 0; p < count; ++p) {
    // False for NaN. Only positions that count are converted to integers.
    const bool counts = y[p] >= first && y[p] < A(H) && x[p] >= first && x[p] < A(W);
    const A py = counts ? y[p] : A(0), px = counts ? x[p] : A(0);
    const A fy0 = std::floor(py), fx0 = std::floor(px);
    const int64_t top = int64_t(fy0), left = int64_t(fx0);
    const int64_t bottom = clamp ? std::min(top + 1, H - 1) : top + 1;
    const int64_t right = clamp ? std::min(left + 1, W - 1) : left + 1;
    const A fy = py - fy0, fx = px - fx0;
    const bool t = counts && top >= 0, b = counts && bottom < H, l = left >= 0, r = right < W;
    out.pixel[p][0] = t && l ? top * W + left : -1;
    out.pixel[p][1] = t && r ? top * W + right : -1;
    out.pixel[p][2] = b && l ? bottom * W + left : -1;
    out.pixel[p][3] = b && r ? bottom * W + right : -1;
    out.weight[p][0] = (1 - fy) * (1 - fx);
    out.weight[p][1] = (1 - fy) * fx;
    out.weight[p][2] = fy * (1 - fx);
    out.weight[p][3] = fy * fx;
    out.fraction[p][0] = fy;
    out.fraction[p][1] = fx;
  }
}

template <class A>
PLIANT_INLINE const A* corner(const A* map, int64_t pixel, int64_t C, const A* zeros) {
  return pixel >= 0 ? map + pixel * C : zeros;
}

// columns[p][0..n) = mask·Σ_i weight_i·corner_i[0..n). `map` and `zeros` point at the first channel of the segment.
template <class A>
PLIANT_INLINE void gather_impl(A* columns, int64_t stride, const Samples<A>& at, const A* map, const A* zeros,
                               int64_t C, int64_t n, int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    const A m = at.mask[p];
    const A w0 = m * at.weight[p][0], w1 = m * at.weight[p][1], w2 = m * at.weight[p][2], w3 = m * at.weight[p][3];
    const A* x0 = corner(map, at.pixel[p][0], C, zeros);
    const A* x1 = corner(map, at.pixel[p][1], C, zeros);
    const A* x2 = corner(map, at.pixel[p][2], C, zeros);
    const A* x3 = corner(map, at.pixel[p][3], C, zeros);
    A* __restrict out = columns + p * stride;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) out[c] = w0 * x0[c] + w1 * x1[c] + w2 * x2[c] + w3 * x3[c];
  }
}

// dots[p][i] += Σ_c grad[p][c]·corner_i[c]: what the gradients of mask and offset are made of.
template <class A>
PLIANT_INLINE void dots_impl(A (*dots)[4], const A* grad, int64_t stride, const Samples<A>& at, const A* map,
                             const A* zeros, int64_t C, int64_t n, int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    const A* x0 = corner(map, at.pixel[p][0], C, zeros);
    const A* x1 = corner(map, at.pixel[p][1], C, zeros);
    const A* x2 = corner(map, at.pixel[p][2], C, zeros);
    const A* x3 = corner(map, at.pixel[p][3], C, zeros);
    const A* g = grad + p * stride;
    A d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
    for (int64_t c = 0; c < n; ++c) {
      d0 += g[c] * x0[c];
      d1 += g[c] * x1[c];
      d2 += g[c] * x2[c];
      d3 += g[c] * x3[c];
    }
    dots[p][0] += d0;
    dots[p][1] += d1;
    dots[p][2] += d2;
    dots[p][3] += d3;
  }
}

// map[corner_i][0..n) += mask·weight_i·grad[p][0..n), corner by corner: with boundary "clamp" two may be the same.
template <class A>
PLIANT_INLINE void scatter_impl(A* map, const A* grad, int64_t stride, const Samples<A>& at, int64_t C, int64_t n,
                                int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    const A* g = grad + p * stride;
    for (int i = 0; i < 4; ++i) {
      if (at.pixel[p][i] < 0) continue;
      const A w = at.mask[p] * at.weight[p][i];
      A* __restrict out = map + at.pixel[p][i] * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) out[c] += w * g[c];
    }
  }
}

// The kernels of one tap, once per instruction level.
[[maybe_unused]] PLIANT_CLONES static void locate(const Samples<float>& o, const float* y, const float* x, int64_t n,
                                                  int64_t H, int64_t W, bool clamp) {
  locate_impl(o, y, x, n, H, W, clamp);
}
[[maybe_unused]] PLIANT_CLONES static void locate(const Samples<double>& o, const double* y, const double* x, int64_t n,
                                                  int64_t H, int64_t W, bool clamp) {
  locate_impl(o, y, x, n, H, W, clamp);
}
[[maybe_unused]] PLIANT_CLONES static void gather(float* o, int64_t s, const Samples<float>& at, const float* x,
                                                  const float* z, int64_t C, int64_t n, int64_t p) {
  gather_impl(o, s, at, x, z, C, n, p);
}
[[maybe_unused]] PLIANT_CLONES static void gather(double* o, int64_t s, const Samples<double>& at, const double* x,
                                                  const double* z, int64_t C, int64_t n, int64_t p) {
  gather_impl(o, s, at, x, z, C, n, p);
}
[[maybe_unused]] PLIANT_CLONES static void dots(float (*d)[4], const float* g, int64_t s, const Samples<float>& at,
                                                const float* x, const float* z, int64_t C, int64_t n, int64_t p) {
  dots_impl(d, g, s, at, x, z, C, n, p);
}
[[maybe_unused]] PLIANT_CLONES static void dots(double (*d)[4], const double* g, int64_t s, const Samples<double>& at,
                                                const double* x, const double* z, int64_t C, int64_t n, int64_t p) {
  dots_impl(d, g, s, at, x, z, C, n, p);
}
[[maybe_unused]] PLIANT_CLONES static void scatter(float* o, const float* g, int64_t s, const Samples<float>& at,
                                                   int64_t C, int64_t n, int64_t p) {
  scatter_impl(o, g, s, at, C, n, p);
}
[[maybe_unused]] PLIANT_CLONES static void scatter(double* o, const double* g, int64_t s, const Samples<double>& at,
                                                   int64_t C, int64_t n, int64_t p) {
  scatter_impl(o, g, s, at, C, n, p);
}

}  // namespace pliant
