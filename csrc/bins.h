// Bins of whole pixels: which part of the map each bin of roi_pool and ps_roi_pool reads.
#pragma once

#include "common.h"

namespace pliant {

// What the kernels take; the words for what is wrong are Python's (op.py), which checks first.
inline bool is_map(const Tensor& t) {
  return is_floating(t) && t.dim() == 4 && t.size(1) > 0 && t.size(2) > 0 && t.size(3) > 0;
}
// Boxes of a map: float32, or the map's dtype.
inline bool are_boxes(const Tensor& t, const Tensor& map) {
  const bool right = t.scalar_type() == ScalarType::Float || t.scalar_type() == map.scalar_type();
  return right && t.dim() == 2 && t.size(1) == 5;
}

struct Span {
  int64_t begin, end;
  bool empty() const { return end <= begin; }
};

// The bins of all boxes, placed before the parallel loops.
struct Bins {
  int64_t Ph, Pw;
  std::vector<int64_t> image;       // of each box, −1 for one that reads nothing
  std::vector<Span> rows, columns;  // [R][Ph] and [R][Pw], within the map

  // Place in the precision of A, operation by operation as the reference does. `more` is 1 where the pixel of the end
  // is part of the box, else 0.
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
        const A s = A(scale);
        cut(&bins.rows[r * Ph], Ph, std::round(box[2] * s), std::round(box[4] * s), H, more);
        cut(&bins.columns[r * Pw], Pw, std::round(box[1] * s), std::round(box[3] * s), W, more);
      }
    });
    return bins;
  }

  const Span& row(int64_t r, int64_t ph) const { return rows[r * Ph + ph]; }
  const Span& column(int64_t r, int64_t pw) const { return columns[r * Pw + pw]; }

 private:
  // Leaves the spans of a box empty that is too huge to have a length.
  template <class A>
  static void cut(Span* spans, int64_t count, A start, A end, int64_t extent, A more) {
    const A length = std::max(end - start + more, A(1));
    if (!std::isfinite(start) || !std::isfinite(length)) return;
    const A bin = length / A(count);
    auto within = [&](A at) { return int64_t(std::min(std::max(at, A(0)), A(extent))); };
    for (int64_t k = 0; k < count; ++k)
      spans[k] = {within(std::floor(A(k) * bin) + start), within(std::ceil(A(k + 1) * bin) + start)};
  }
};

}  // namespace pliant
