// Locate samples: the pixels of the four corners and their bilinear weights.
#include <cmath>

#include "sampling.h"

namespace pliant {
namespace {

template <bool Clamp, bool Frame, class A>
PLIANT_INLINE void locate_as(const Samples<A>& out, const Positions<A>& from, int64_t count, int64_t H, int64_t W) {
  const A *__restrict row = from.row, *__restrict column = from.column, *__restrict dy = from.y,
          *__restrict dx = from.x;
  const A first = Clamp ? 0 : -1, height = A(H), width = A(W);
  int64_t *__restrict i0 = out.pixel[0], *__restrict i1 = out.pixel[1], *__restrict i2 = out.pixel[2],
                      *__restrict i3 = out.pixel[3];
  A *__restrict w0 = out.weight[0], *__restrict w1 = out.weight[1], *__restrict w2 = out.weight[2],
    *__restrict w3 = out.weight[3], *__restrict below = out.fy, *__restrict beside = out.fx;
  // Two loops, with 1 or 0 in as many bits as floats have: compilers turn these into vectors. `valid` is false for NaN,
  // so that only valid positions are converted to integers.
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A y = dy[p] + (row[p] + from.dy), x = dx[p] + (column[p] + from.dx);
    const bool valid = (y >= first) & (y < height) & (x >= first) & (x < width);
    below[p] = valid ? y : A(0);
    beside[p] = valid ? x : A(0);
    w0[p] = valid ? A(1) : A(0);
  }
  // Sides are below 2³¹, so rows and columns are 32 bits wide.
  const int32_t rows = int32_t(H), columns = int32_t(W);
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A fy0 = std::floor(below[p]), fx0 = std::floor(beside[p]), fy = below[p] - fy0, fx = beside[p] - fx0;
    const int32_t valid = w0[p] != 0, top = int32_t(fy0), left = int32_t(fx0);
    if constexpr (Frame) {
      i0[p] = ((int64_t(top) + 2) * (columns + 2) + left + 1) & -valid;
    } else {
      const int32_t b_in = top + 1 < rows, r_in = left + 1 < columns;
      const int32_t t = valid & (top >= 0), b = valid & (Clamp | b_in), l = left >= 0, r = Clamp | r_in;
      // With boundary "clamp" the corner beyond the last row is in the last row.
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

template <class A>
PLIANT_INLINE void locate_any(const Samples<A>& out, const Positions<A>& from, int64_t count, int64_t H, int64_t W,
                              bool clamp, bool frame) {
  if (clamp && frame)
    locate_as<true, true>(out, from, count, H, W);
  else if (clamp)
    locate_as<true, false>(out, from, count, H, W);
  else if (frame)
    locate_as<false, true>(out, from, count, H, W);
  else
    locate_as<false, false>(out, from, count, H, W);
}

}  // namespace

PLIANT_KERNEL(PLIANT_LOCATE, { locate_any(out, from, count, H, W, clamp, frame); }, (float), (double))

}  // namespace pliant
