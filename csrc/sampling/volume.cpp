// Trilinear sampling: which planes a sample reads, and reading both.
#include "volume.h"

#include <cmath>

#include "rows.h"

namespace pliant {
namespace {

template <bool Clamp, class A>
PLIANT_INLINE void locate_planes_as(const Samples<A>& at, const Positions<A>& from, int64_t count, int64_t D,
                                    int64_t HW) {
  const A* __restrict plane = from.plane, * __restrict dz = from.z, * __restrict factor = at.factor;
  const A first = Clamp ? 0 : -1, depth = A(D);
  const int32_t planes = int32_t(D);
  A* __restrict behind = at.fz, * __restrict near_mask = at.mask, * __restrict far_mask = at.far_mask;
  int64_t* __restrict n0 = at.pixel[0];
  int64_t* __restrict n1 = at.pixel[1];
  int64_t* __restrict n2 = at.pixel[2];
  int64_t* __restrict n3 = at.pixel[3];
  int64_t* __restrict f0 = at.far_pixel[0];
  int64_t* __restrict f1 = at.far_pixel[1];
  int64_t* __restrict f2 = at.far_pixel[2];
  int64_t* __restrict f3 = at.far_pixel[3];
  // In two loops, as `locate` has; `far_mask` holds in between whether the sample is valid.
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A z = dz[p] + (plane[p] + from.dz);
    const bool valid = (z >= first) & (z < depth);
    behind[p] = valid ? z : A(0);
    far_mask[p] = valid ? A(1) : A(0);
  }
#pragma omp simd
  for (int64_t p = 0; p < count; ++p) {
    const A floor = std::floor(behind[p]), fz = behind[p] - floor;
    const int32_t valid = far_mask[p] != 0, z = int32_t(floor), in = z + 1 < planes;
    const int32_t near_in = valid & (z >= 0), far_in = valid & (Clamp | in);
    const int64_t near = int64_t(z) * HW, far = near + (Clamp ? in * HW : HW);
    // All bits where the plane does not exist. Corners outside of the plane are negative, and so is their shift.
    const int64_t no_near = int64_t(near_in) - 1, no_far = int64_t(far_in) - 1;
    const int64_t c0 = n0[p], c1 = n1[p], c2 = n2[p], c3 = n3[p];
    n0[p] = (c0 + near) | no_near | (c0 >> 63);
    n1[p] = (c1 + near) | no_near | (c1 >> 63);
    n2[p] = (c2 + near) | no_near | (c2 >> 63);
    n3[p] = (c3 + near) | no_near | (c3 >> 63);
    f0[p] = (c0 + far) | no_far | (c0 >> 63);
    f1[p] = (c1 + far) | no_far | (c1 >> 63);
    f2[p] = (c2 + far) | no_far | (c2 >> 63);
    f3[p] = (c3 + far) | no_far | (c3 >> 63);
    behind[p] = fz;
    near_mask[p] = factor[p] * (1 - fz);
    far_mask[p] = factor[p] * fz;
  }
}

template <class A, class M, class V>
PLIANT_INLINE void gather_volume_map(V* columns, int64_t stride, const Samples<A>& at, const M* map, const M* zeros,
                                     int64_t C, int64_t channels, int64_t count) {
  with_width(channels, [&](auto n) __attribute__((always_inline)) {
    for (int64_t p = 0; p < count; ++p) {
      const A m = at.mask[p], f = at.far_mask[p];
      const A b0 = at.weight[0][p], b1 = at.weight[1][p], b2 = at.weight[2][p], b3 = at.weight[3][p];
      const A w0 = m * b0, w1 = m * b1, w2 = m * b2, w3 = m * b3, v0 = f * b0, v1 = f * b1, v2 = f * b2, v3 = f * b3;
      const M* x0 = corner(map, at.pixel[0][p], C, zeros);
      const M* x1 = corner(map, at.pixel[1][p], C, zeros);
      const M* x2 = corner(map, at.pixel[2][p], C, zeros);
      const M* x3 = corner(map, at.pixel[3][p], C, zeros);
      const M* y0 = corner(map, at.far_pixel[0][p], C, zeros);
      const M* y1 = corner(map, at.far_pixel[1][p], C, zeros);
      const M* y2 = corner(map, at.far_pixel[2][p], C, zeros);
      const M* y3 = corner(map, at.far_pixel[3][p], C, zeros);
      V* __restrict out = columns + p * stride;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c)
        out[c] = narrow<V>((w0 * A(x0[c]) + w1 * A(x1[c]) + w2 * A(x2[c]) + w3 * A(x3[c])) +
                           (v0 * A(y0[c]) + v1 * A(y1[c]) + v2 * A(y2[c]) + v3 * A(y3[c])));
    }
  });
}

template <class A, class M>
PLIANT_INLINE void blend_volume_map(A* out, int64_t stride, const Samples<A>& at, int64_t set, int64_t K,
                                    Tap<A, M>* taps, const A* factors, const A* bias, const M* map, const M* zeros,
                                    int64_t C, int64_t n, int64_t count) {
  for (int64_t p = 0; p < count; ++p, out += stride) {
    for (int64_t k = 0; k < K; ++k)
      for (int i = 0; i < 4; ++i) {
        const int64_t from = k * set + p;
        const A weight = at.weight[i][from];
        taps[2 * k].at[i] = corner(map, at.pixel[i][from], C, zeros);
        taps[2 * k].weight[i] = at.mask[from] * weight;
        taps[2 * k + 1].at[i] = corner(map, at.far_pixel[i][from], C, zeros);
        taps[2 * k + 1].weight[i] = at.far_mask[from] * weight;
      }
    in_blocks<A>(n, [=](auto width, int64_t c) __attribute__((always_inline)) {
      blend_block<width.value, 2>(out, taps, K, factors, C, bias, c);
    });
  }
}

}  // namespace

PLIANT_KERNEL(
    PLIANT_LOCATE_PLANES,
    {
      if (clamp)
        locate_planes_as<true>(at, from, count, D, HW);
      else
        locate_planes_as<false>(at, from, count, D, HW);
    },
    (float), (double))
PLIANT_KERNEL(
    PLIANT_GATHER_VOLUME, { gather_volume_map(columns, stride, at, map, zeros, C, n, count); }, (float, float, float),
    (double, double, double), (float, BFloat16, float), (float, BFloat16, BFloat16))
PLIANT_KERNEL(
    PLIANT_BLEND_VOLUME, { blend_volume_map(out, stride, at, set, K, taps, factors, bias, map, zeros, C, n, count); },
    (float, float), (double, double), (float, BFloat16))

}  // namespace pliant
