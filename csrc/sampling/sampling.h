// Bilinear sampling of channels-last maps: locate samples, gather values, dot gradients with them, scatter gradients.
// The rules of bounds and derivatives are in docs/deform_conv2d.md.
#pragma once

#include "../abi.h"
#include "../isa.h"

namespace pliant {

// The four corners of every sample of a tile, for one tap of one offset group: an array per number, so that several
// samples are located at a time. Corners come in the order upper left, upper right, lower left, lower right.
template <class A>
struct Samples {
  // Index of the corner in its image; −1 out of bounds, which reads from a row of zeros and scatters nowhere. In a
  // frame (maps/frame.h) only the first corner is set, and it is always valid.
  int64_t* pixel[4];
  A* weight[4];  // bilinear, without the mask
  A *fy, *fx;    // distance from the upper left corner
  A* mask;
  // A sample of a volume reads two planes. The above is its share of the near one, with `factor` times 1 − fz as mask;
  // these are its corners in the far plane and their mask, fz, and the mask of the whole sample. Weights are the same.
  int64_t* far_pixel[4];
  A *far_mask, *fz, *factor;

  // The share of the far plane.
  Samples far() const {
    Samples found = *this;
    std::copy_n(far_pixel, 4, found.pixel);
    found.mask = far_mask;
    return found;
  }
  // Those from sample i on.
  Samples from(int64_t i) const {
    Samples found = *this;
    for (auto& each : found.pixel) each += i;
    for (auto& each : found.weight) each += i;
    for (auto* each : {&found.fy, &found.fx, &found.mask, &found.far_mask, &found.fz, &found.factor}) *each += i;
    for (auto& each : found.far_pixel) each += i;
    return found;
  }
};

// Positions of one tap: those of the regular grid, the offsets, and the place of the tap in its kernel.
template <class A>
struct Positions {
  A *row, *column, *y, *x;
  A dy, dx;
  A *plane, *z;  // of a volume
  A dz;
};

// What `blend` keeps per tap of one position: the corners' first values, and their weights times the mask.
template <class A, class M>
struct Tap {
  const M* at[4];
  A weight[4];
};

// In all kernels below A is the type of sums, M that of the map, V that of columns; `stride` is the distance between
// the rows of two positions, `map` and `zeros` begin with the first of the n channels, C is the channels of the map.
// The overloads with `row` read or write a frame whose rows are that far apart.

// Find the corners and weights of `count` samples.
#define PLIANT_LOCATE(A)                                                                                        \
  void locate(const Samples<A>& out, const Positions<A>& from, int64_t count, int64_t H, int64_t W, bool clamp, \
              bool frame)
PLIANT_DECLARE(PLIANT_LOCATE, (float), (double))

// columns[p][0..n) = mask·Σ_i weight_i·corner_i[0..n).
#define PLIANT_GATHER(A, M, V)                                                                                      \
  void gather(V* columns, int64_t stride, const Samples<A>& at, const M* map, const M* zeros, int64_t C, int64_t n, \
              int64_t count)
PLIANT_DECLARE(PLIANT_GATHER, (float, float, float), (double, double, double), (float, BFloat16, float),
               (float, BFloat16, BFloat16))

// The same from a frame. All four values of a pixel are written: the next tap overwrites those past the channels.
#define PLIANT_GATHER_FRAME(A, V) \
  void gather(V* columns, int64_t stride, const Samples<A>& at, const A* frame, int64_t row, int64_t count)
PLIANT_DECLARE(PLIANT_GATHER_FRAME, (float, float), (double, double), (float, BFloat16))

// out[p][0..n) = bias + Σ_k factors[k]·mask·Σ_i weight_i·corner_i, elementwise over channels: depthwise convolution.
// `taps` has room for K of them; the samples of a tap are `set` after those of the tap before.
#define PLIANT_BLEND(A, M)                                                                                            \
  void blend(A* out, int64_t stride, const Samples<A>& at, int64_t set, int64_t K, Tap<A, M>* taps, const A* factors, \
             const A* bias, const M* map, const M* zeros, int64_t C, int64_t n, int64_t count)
PLIANT_DECLARE(PLIANT_BLEND, (float, float), (double, double), (float, BFloat16))

// sums[i][p] += Σ_c grad[p][c]·corner_i[c]: the gradients of mask and offset are made of these. Of two planes, the
// corners of the far one come after those of the near.
#define PLIANT_DOTS(A, M)                                                                                  \
  void dots(A* const* sums, const A* grad, int64_t stride, const Samples<A>& at, int planes, const M* map, \
            const M* zeros, int64_t C, int64_t n, int64_t count)
PLIANT_DECLARE(PLIANT_DOTS, (float, float), (double, double), (float, BFloat16))

// sums[i][p] = Σ_c grad[p][c]·corner_i[c] over the n channels of a frame.
#define PLIANT_DOTS_FRAME(A)                                                                                    \
  void dots(A* const sums[4], const A* grad, int64_t stride, const Samples<A>& at, const A* frame, int64_t row, \
            int64_t n, int64_t count)
PLIANT_DECLARE(PLIANT_DOTS_FRAME, (float), (double))

// map[corner_i][0..n) += mask·weight_i·grad[p][0..n), in one plane or two.
#define PLIANT_SCATTER(A)                                                                                     \
  void scatter(A* map, const A* grad, int64_t stride, const Samples<A>& at, int planes, int64_t C, int64_t n, \
               int64_t count)
PLIANT_DECLARE(PLIANT_SCATTER, (float), (double))

// The same into a frame, all four values of a pixel: sums past the channels are never read.
#define PLIANT_SCATTER_FRAME(A) \
  void scatter(A* frame, const A* grad, int64_t stride, const Samples<A>& at, int64_t row, int64_t count)
PLIANT_DECLARE(PLIANT_SCATTER_FRAME, (float), (double))

}  // namespace pliant
