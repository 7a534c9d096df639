// Weighted sums of samples: locate the samples of a tile of queries, gather their values, dot and scatter gradients.
// A query has K samples, of D adjacent channels each; a pixel is a row of all channels of its image.
#pragma once

#include "../abi.h"
#include "../isa.h"

namespace pliant {

// The samples of a tile, the K of a query next to each other: an array per number, so that several are located at a
// time.
template <class A>
struct Asked {
  A *x, *y;              // as the user gave them
  A* factor;             // weight of attention, or mask
  A *start_x, *start_y;  // the pixel is start + scale·(x, y)
  const A *scale_x, *scale_y;
  const int32_t *rows, *columns, *first;  // size of the level, and its first pixel in the image
};

// The same samples, placed. Corners come in the order upper left, upper right, lower left, lower right.
template <class A>
struct Placed {
  int32_t* pixel[4];  // index in the image; −1 out of bounds, which reads from a row of zeros and scatters nowhere
  A* weight[4];       // bilinear, times the factor
  A *fx, *fy;         // distance from the upper left corner
};

// In all kernels below A is the type of sums and M that of the map, whose pixels are `row` values apart.

// Place `count` samples. Discrete ones have one corner, the pixel trunc(start + scale·(x, y)), clamped into the level.
#define PLIANT_PLACE(A) void place(const Placed<A>& out, const Asked<A>& from, int64_t count, bool discrete)
PLIANT_DECLARE(PLIANT_PLACE, (float), (double))

// Copy n channels of `count` pixels that lie `to_row` and `from_row` values apart.
#define PLIANT_COPY(M) void copy(M* to, int64_t to_row, const M* from, int64_t from_row, int64_t n, int64_t count)
PLIANT_DECLARE(PLIANT_COPY, (float), (double), (BFloat16), (Half))

// Where the corners of a sample are read: in the map, or in a row of zeros.
template <class M>
struct Corners {
  const M** at[4];
  bool far;  // they are worth fetching before they are read
};

// Point to the corners of `count` samples; `map` begins with the first of the D channels, `zeros` has D of them.
#define PLIANT_POINT(M)                                                                                         \
  void point(const Corners<M>& out, const int32_t* const pixel[4], int64_t count, const M* map, const M* zeros, \
             int64_t row)
PLIANT_DECLARE(PLIANT_POINT, (float), (double), (BFloat16), (Half))

// out[q·stride][0..D) = Σ_k Σ_i weight_i·corner_i[0..D), for the queries of a tile.
#define PLIANT_AGGREGATE(A, M)                                                                                     \
  void aggregate(M* out, int64_t stride, const Placed<A>& placed, const Corners<M>& corners, int64_t D, int64_t K, \
                 int64_t queries)
PLIANT_DECLARE(PLIANT_AGGREGATE, (float, float), (double, double), (float, BFloat16), (float, Half))

// x[i], y[i] = from[q·stride + 2·k], from[q·stride + 2·k + 1] and factor[i] = from[q·stride + k], for i = q·K + k.
#define PLIANT_TAKE_PAIRS(A, V) void take(A* x, A* y, const V* from, int64_t stride, int64_t K, int64_t queries)
#define PLIANT_TAKE(A, V) void take(A* values, const V* from, int64_t stride, int64_t K, int64_t queries)
PLIANT_DECLARE(PLIANT_TAKE_PAIRS, (float, float), (double, double), (float, BFloat16), (float, Half))
PLIANT_DECLARE(PLIANT_TAKE, (float, float), (double, double), (float, BFloat16), (float, Half))

// The reverse; coordinates are multiplied by their scales.
#define PLIANT_GIVE_PAIRS(A, V)                                                                           \
  void give(V* to, const A* x, const A* y, const A* scale_x, const A* scale_y, int64_t stride, int64_t K, \
            int64_t queries)
#define PLIANT_GIVE(A, V) void give(V* to, const A* values, int64_t stride, int64_t K, int64_t queries)
PLIANT_DECLARE(PLIANT_GIVE_PAIRS, (float, float), (double, double), (float, BFloat16), (float, Half))
PLIANT_DECLARE(PLIANT_GIVE, (float, float), (double, double), (float, BFloat16), (float, Half))

// Gradients of the samples' factors, and of their pixels times the factors: products of grad[q·stride][0..D) with the
// corners.
#define PLIANT_SLOPES(A, M)                                                                                    \
  void slopes(A* factor, A* x, A* y, const A* grad, int64_t stride, const Placed<A>& placed, const A* factors, \
              const Corners<M>& corners, int64_t D, int64_t K, int64_t queries)
PLIANT_DECLARE(PLIANT_SLOPES, (float, float), (double, double), (float, BFloat16), (float, Half))

// map[corner_i][0..D) += weight_i·grad[q·stride][0..D), for the corners in [low, high); `far` as in Corners.
#define PLIANT_SPREAD(A)                                                                                     \
  void spread(A* map, int64_t row, const A* grad, int64_t stride, const Placed<A>& at, int64_t D, int64_t K, \
              int64_t queries, int32_t low, int32_t high, bool far)
PLIANT_DECLARE(PLIANT_SPREAD, (float), (double))

}  // namespace pliant
