// Where the bins of a RoI lie: numbers only. Positions must equal the reference's bit for bit on every platform, so
// placement.cpp is compiled without contraction (-ffp-contract=off in CMakeLists.txt): a fused multiply-add rounds once
// where the reference rounds twice. tests/test_contraction.py checks that.
#pragma once

#include <cstdint>

namespace pliant {

// Pixels [begin, end) of one direction, which a bin of whole pixels covers.
struct Span {
  int64_t begin, end;
  bool empty() const { return end <= begin; }
};

// One direction of a RoI in pixels of the map.
template <class A>
struct Side {
  A start, size;
};

// The rule by which the samples of an averaged bin are laid out.
struct SampleRule {
  int64_t samples = 0;   // in each direction; RoIAlign: 0 or less for as many as the bin has pixels
  bool counted = false;  // deformable PS-RoI pooling: whole-pixel boxes, a bin divides by its samples within bounds
  bool aligned = true;   // RoIAlign: boxes are moved by half a pixel
  double scale = 1, gamma = 0;
};

// The rows (or columns) that a bin reads, ascending, each once. The samples of a bin stand on a grid, and whether one
// is within bounds is decided for its row and its column apart. So the sum over samples is one over rows and columns:
//   Σ_iy Σ_ix x(y_iy, x_ix) = Σ_row Σ_column wy[row]·wx[column]·x[row, column],
//   wy[row] = Σ_iy max(0, 1 − |row − y_iy|).
template <class A>
struct Axis {
  int64_t* index;
  A* weight;
  A* slope;  // d weight / d position
  int64_t count;
  A samples;  // that the average divides by
};

// Place a box (image, x1, y1, x2, y2) on one of N images. Return false for a box that reads nothing, because its image
// does not exist or it is not finite.
template <class A>
bool place_box(const A (&box)[5], const SampleRule& rule, int64_t N, Side<A>& y, Side<A>& x);

// Lay out the samples of bin `place` of `bins` along one direction of `extent` pixels, moved by `shift`.
template <class A>
void lay_out(Axis<A>& axis, const SampleRule& rule, const Side<A>& side, int64_t place, int64_t bins, A shift,
             int64_t extent);

// Cut a side of a box (in pixels of the input) into `count` bins of whole pixels of a map with `extent` of them. `more`
// is 1 where the end pixel is part of the box, else 0. Spans of a box too huge to have a length stay as they are.
template <class A>
void cut_side(Span* spans, int64_t count, A first, A last, A scale, int64_t extent, A more);

}  // namespace pliant
