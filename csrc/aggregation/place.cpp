// Place samples: the pixels of their corners, and bilinear weights. Compiled without contraction: which pixel a
// discrete sample takes is decided as in the reference.
#include <cmath>

#include "samples.h"

namespace pliant {
namespace {

template <class A>
PLIANT_INLINE void place_bilinear(const Placed<A>& out, const Asked<A>& from, int64_t count) {
  const A* __restrict x = from.x;
  const A* __restrict y = from.y;
  const A* __restrict start_x = from.start_x;
  const A* __restrict start_y = from.start_y;
  const A* __restrict scale_x = from.scale_x;
  const A* __restrict scale_y = from.scale_y;
  const A* __restrict factor = from.factor;
  const int32_t* __restrict rows = from.rows, * __restrict columns = from.columns, * __restrict first = from.first;
  int32_t* __restrict i0 = out.pixel[0];
  int32_t* __restrict i1 = out.pixel[1];
  int32_t* __restrict i2 = out.pixel[2];
  int32_t* __restrict i3 = out.pixel[3];
  A* __restrict w0 = out.weight[0];
  A* __restrict w1 = out.weight[1];
  A* __restrict w2 = out.weight[2];
  A* __restrict w3 = out.weight[3];
  A* __restrict below = out.fy;
  A* __restrict beside = out.fx;
  // Two loops: `valid` is false for NaN, so that only valid positions are converted to integers.
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const A px = start_x[i] + scale_x[i] * x[i], py = start_y[i] + scale_y[i] * y[i];
    const bool valid = (py >= -1) & (py < A(rows[i])) & (px >= -1) & (px < A(columns[i]));
    beside[i] = valid ? px : A(0);
    below[i] = valid ? py : A(0);
    w0[i] = valid ? A(1) : A(0);
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const A fy0 = std::floor(below[i]), fx0 = std::floor(beside[i]), fy = below[i] - fy0, fx = beside[i] - fx0;
    const int32_t valid = w0[i] != 0, top = int32_t(fy0), left = int32_t(fx0), W = columns[i];
    const int32_t t = valid & (top >= 0), b = valid & (top + 1 < rows[i]), l = left >= 0, r = left + 1 < W;
    const int32_t at = first[i] + top * W + left;
    i0[i] = at | ((t & l) - 1);
    i1[i] = (at + 1) | ((t & r) - 1);
    i2[i] = (at + W) | ((b & l) - 1);
    i3[i] = (at + W + 1) | ((b & r) - 1);
    const A low = (1 - fy) * factor[i], high = fy * factor[i];
    w0[i] = low * (1 - fx);
    w1[i] = low * fx;
    w2[i] = high * (1 - fx);
    w3[i] = high * fx;
    below[i] = fy;
    beside[i] = fx;
  }
}

template <class A>
PLIANT_INLINE void place_discrete(const Placed<A>& out, const Asked<A>& from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A px = from.start_x[i] + from.scale_x[i] * from.x[i], py = from.start_y[i] + from.scale_y[i] * from.y[i];
    const bool finite = std::isfinite(px) && std::isfinite(py);
    const A right = A(from.columns[i] - 1), bottom = A(from.rows[i] - 1);
    const A x = finite ? std::min(std::max(px, A(0)), right) : A(0);
    const A y = finite ? std::min(std::max(py, A(0)), bottom) : A(0);
    out.pixel[0][i] = finite ? from.first[i] + int32_t(y) * from.columns[i] + int32_t(x) : -1;
    out.weight[0][i] = from.factor[i];
    for (int corner = 1; corner < 4; ++corner) out.pixel[corner][i] = -1, out.weight[corner][i] = 0;
    out.fx[i] = out.fy[i] = 0;
  }
}

template <class A>
PLIANT_INLINE void place_any(const Placed<A>& out, const Asked<A>& from, int64_t count, bool discrete) {
  if (discrete)
    place_discrete(out, from, count);
  else
    place_bilinear(out, from, count);
}

template <class M>
PLIANT_INLINE void point_at(const Corners<M>& out, const int32_t* const pixel[4], int64_t count, const M* map,
                            const M* zeros, int64_t row) {
  for (int corner = 0; corner < 4; ++corner) {
    const int32_t* __restrict from = pixel[corner];
    const M** __restrict to = out.at[corner];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] < 0 ? zeros : map + int64_t(from[i]) * row;
  }
}

}  // namespace

PLIANT_KERNEL(PLIANT_POINT, { point_at(out, pixel, count, map, zeros, row); }, (float), (double), (BFloat16), (Half))
PLIANT_KERNEL(PLIANT_PLACE, { place_any(out, from, count, discrete); }, (float), (double))

}  // namespace pliant
