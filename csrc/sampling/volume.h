// Trilinear sampling: a sample of a volume is two bilinear ones, in the planes before and behind it. `locate` finds the
// corners within a plane; what follows here chooses the planes and reads both of them. The kernels that scatter and dot
// run once for each plane.
#pragma once

#include "sampling.h"

namespace pliant {

// Turn the corners within a plane of H·W pixels into those of the near and the far plane of D, and split `factor`
// between them.
#define PLIANT_LOCATE_PLANES(A) \
  void locate_planes(const Samples<A>& at, const Positions<A>& from, int64_t count, int64_t D, int64_t HW, bool clamp)
PLIANT_DECLARE(PLIANT_LOCATE_PLANES, (float), (double))

// columns[p][0..n) = Σ_i weight_i·(mask·near corner_i[0..n) + far_mask·far corner_i[0..n)).
#define PLIANT_GATHER_VOLUME(A, M, V)                                                                           \
  void gather_volume(V* columns, int64_t stride, const Samples<A>& at, const M* map, const M* zeros, int64_t C, \
                     int64_t n, int64_t count)
PLIANT_DECLARE(PLIANT_GATHER_VOLUME, (float, float, float), (double, double, double), (float, BFloat16, float),
               (float, BFloat16, BFloat16))

// `blend` of a volume; `taps` has room for 2·K of them.
#define PLIANT_BLEND_VOLUME(A, M)                                                                          \
  void blend_volume(A* out, int64_t stride, const Samples<A>& at, int64_t set, int64_t K, Tap<A, M>* taps, \
                    const A* factors, const A* bias, const M* map, const M* zeros, int64_t C, int64_t n,   \
                    int64_t count)
PLIANT_DECLARE(PLIANT_BLEND_VOLUME, (float, float), (double, double), (float, BFloat16))

}  // namespace pliant
