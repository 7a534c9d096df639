// Bins of whole pixels: the part of the map that each bin of roi_pool and ps_roi_pool covers.
#pragma once

#include <cmath>
#include <vector>

#include "../abi.h"
#include "../memory.h"
#include "placement.h"

namespace pliant {

// The sizes of a map: images may be none.
inline bool are_sizes(int64_t N, int64_t C, int64_t H, int64_t W) {
  return N >= 0 && C > 0 && H > 0 && W > 0 && could_hold({C, H, W});
}
inline bool is_map(const Tensor& t) {
  return is_floating(t) && t.dim() == 4 && are_sizes(t.size(0), t.size(1), t.size(2), t.size(3));
}
// Rows and columns of bins, whose product fits into 64 bits.
inline bool are_bins(int64_t Ph, int64_t Pw) {
  constexpr int64_t kMost = int64_t(1) << 31;
  return Ph > 0 && Pw > 0 && Ph < kMost && Pw < kMost;
}
// Boxes of a map: float32, or the map's dtype.
inline bool are_boxes(const Tensor& t, const Tensor& map) {
  const bool right = t.scalar_type() == ScalarType::Float || t.scalar_type() == map.scalar_type();
  return right && t.dim() == 2 && t.size(1) == 5;
}

// The bins of all boxes, placed before the parallel loops.
struct Bins {
  int64_t Ph, Pw;
  std::vector<int64_t> image;       // of each box, −1 for one that reads nothing
  std::vector<Span> rows, columns;  // [R][Ph] and [R][Pw], within the map

  // Place in the precision of A, operation by operation as the reference does; `more` as in cut_side.
  template <class A>
  static Bins place(const Tensor& rois, int64_t N, int64_t H, int64_t W, int64_t Ph, int64_t Pw, double scale, A more) {
    const int64_t R = rois.size(0);
    Bins bins{Ph, Pw, std::vector<int64_t>(R, -1), std::vector<Span>(R * Ph), std::vector<Span>(R * Pw)};
    dispatch(rois.scalar_type(), [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(rois.const_data_ptr());
      for (int64_t r = 0; r < R; ++r) {
        A box[5];
        bool finite = true;
        for (int64_t i = 0; i < 5; ++i) {
          box[i] = A(from[r * rois.stride(0) + i * rois.stride(1)]);
          finite = finite && std::isfinite(box[i]);
        }
        if (!finite || !(box[0] >= 0 && box[0] < A(N))) continue;
        bins.image[r] = int64_t(box[0]);
        cut_side(&bins.rows[r * Ph], Ph, box[2], box[4], A(scale), H, more);
        cut_side(&bins.columns[r * Pw], Pw, box[1], box[3], A(scale), W, more);
      }
    });
    return bins;
  }

  int64_t count() const { return Ph * Pw; }
  // The rows and columns that a bin of box r covers; bins are counted row by row.
  const Span& row(int64_t r, int64_t bin) const { return rows[r * Ph + bin / Pw]; }
  const Span& column(int64_t r, int64_t bin) const { return columns[r * Pw + bin % Pw]; }
};

}  // namespace pliant
