// What the averages over RoI bins share, forward and backward: the boxes, and where a bin's samples read the map.
//
// The samples of a bin stand on a grid, and whether one counts is decided for its row and its column apart. So the sum
// over samples is one over rows and columns of the map, each pixel read once, with a weight that is a product:
//   Σ_iy Σ_ix x(y_iy, x_ix) = Σ_row Σ_column wy[row]·wx[column]·x[row, column],  wy[row] = Σ_iy max(0, 1 − |row − y_iy|).
// Nothing here is in a function with clones: a fused multiply-add would move positions off those of the reference.
#pragma once

#include "../maps.h"

namespace pliant {

// Which operator: the sizes, the channels, the rule by which samples are laid out.
struct Pool {
  int64_t N, C, H, W, R;
  int64_t Ph, Pw;          // bins
  int64_t Gh = 1, Gw = 1;  // groups of channels that take turns over the bins
  int64_t part = 0;        // offsets in each direction, 0: one for every bin
  int64_t classes = 1;     // with offsets of their own
  bool counted = false;    // deformable PS-RoI pooling's rule, else RoIAlign's
  bool aligned = true;
  int64_t samples = 0;  // in each direction; RoIAlign: 0 or less for as many as the bin has pixels
  double scale = 1, gamma = 0;

  Pool(const Tensor& input, const Tensor& rois, int64_t Ph, int64_t Pw, double scale, int64_t samples)
      : N(input.size(0)),
        C(input.size(1)),
        H(input.size(2)),
        W(input.size(3)),
        R(rois.size(0)),
        Ph(Ph),
        Pw(Pw),
        samples(samples),
        scale(scale) {}

  int64_t bins() const { return Ph * Pw; }
  int64_t groups() const { return Gh * Gw; }
  int64_t outputs() const { return C / groups(); }
  // Offsets of a RoI stand in a block [2·classes][parts()], of every class those of x, then those of y.
  int64_t parts() const { return part ? part * part : bins(); }
  int64_t slot(int64_t k, int64_t ph, int64_t pw) const {
    return 2 * k * parts() + (part ? ph * part / Ph * part + pw * part / Pw : ph * Pw + pw);
  }
};

// The rows (or columns) that a bin reads, ascending, each once.
template <class A>
struct Axis {
  int64_t* index;
  A* weight;
  A* slope;  // d weight / d position
  int64_t count;
  A samples;  // that the average divides by

  void add(int64_t i, A w, A s) {
    // Samples come in ascending order, so a row that is there already is one of the last two.
    for (int64_t k = count - 1; k >= 0 && k >= count - 2; --k)
      if (index[k] == i) {
        weight[k] += w, slope[k] += s;
        return;
      }
    index[count] = i, weight[count] = w, slope[count] = s, ++count;
  }

  // One bilinear sample at `position`, moved into the map.
  void sample(A position, int64_t extent) {
    const A moved = std::min(std::max(position, A(0)), A(extent - 1)), low = std::floor(moved), part = moved - low;
    // Right-sided; 0 where the position is moved.
    const A slope = position >= 0 && position < A(extent - 1) ? A(1) : A(0);
    const int64_t first = int64_t(low);
    add(first, 1 - part, -slope);
    add(std::min(first + 1, extent - 1), part, slope);
  }
};

// One direction of one RoI in pixels of the map.
template <class A>
struct Side {
  A start, size;
};

// Lay out the samples of bin `place` along one direction of `extent` pixels.
template <class A>
void lay_out(Axis<A>& axis, const Pool& s, const Side<A>& side, int64_t place, int64_t bins, A shift, int64_t extent) {
  axis.count = 0;
  const A bin = side.size / A(bins), origin = side.start + A(place) * bin + shift;
  if (s.counted) {
    const A step = bin / A(s.samples);
    axis.samples = 0;
    for (int64_t i = 0; i < s.samples; ++i) {
      const A position = origin + A(i) * step;
      if (!(position >= A(-0.5) && position <= A(extent) - A(0.5))) continue;
      axis.sample(position, extent);
      axis.samples += 1;
    }
    return;
  }
  const bool adaptive = s.samples <= 0;
  const A total = adaptive ? std::max(std::ceil(bin), A(0)) : A(s.samples);
  axis.samples = total;
  if (!(total > 0)) return;
  const A step = bin / total;
  A skipped = 0;
  int64_t visits = s.samples;
  if (adaptive) {
    // Adaptive samples lie half a pixel apart or more where there are two: of a huge box only those are visited that
    // may lie in the map. NaN skips nothing here and counts nothing below.
    skipped = std::min(std::max(std::floor((-1 - origin) / step) - 1, A(0)), total);
    visits = int64_t(std::min(total, std::ceil(A(extent + 1) / step) + 4));
  }
  for (int64_t j = 0; j < visits; ++j) {
    // An inverted box has its samples from right to left.
    const A i = A(bin < 0 ? visits - 1 - j : j);
    const A position = origin + skipped * step + (i + A(0.5)) * bin / total;
    if (skipped + i < total && position >= -1 && position <= A(extent)) axis.sample(position, extent);
  }
}

// Boxes, offsets and masks as they came, and what one thread needs of its own to walk over the bins of one RoI.
template <class A>
class Walk {
 public:
  Walk(const Pool& s, const Tensor& rois, const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
       Arena& arena)
      : s_(s), rois_(rois) {
    if (offset) offset_.emplace(*offset);
    if (mask) mask_.emplace(*mask);
    reserve(arena, rows_, 1, s.H);
    reserve(arena, columns_, offset ? 1 : s.Pw, s.W);
    arena.reserve(offsets_, offset ? 2 * s.classes * s.parts() : 0);
    arena.reserve(masks_, mask ? s.bins() : 0);
  }

  // A bin of one class: `image` of the map, `channel` the first of its channels there, `share` one over its samples,
  // `factor` that times its mask, `dy` and `dx` how far an offset of 1 moves it.
  struct Bin {
    int64_t image, channel, k, ph, pw;
    A factor, share, dy, dx;
    const Axis<A>&rows, &columns;
  };

  // Call f(bin) for every bin of RoI r and every class.
  template <class F>
  void each_bin(int64_t r, F&& f) {
    A box[5];
    dispatch(rois_.scalar_type(), [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(rois_.const_data_ptr()) + r * rois_.stride(0);
      for (int64_t i = 0; i < 5; ++i) box[i] = A(from[i * rois_.stride(1)]);
    });
    Side<A> y, x;
    const bool alive = place(box, y, x);
    const int64_t image = alive ? int64_t(box[0]) : 0;
    const A dy = alive ? A(s_.gamma) * y.size : A(0), dx = alive ? A(s_.gamma) * x.size : A(0);
    if (offset_)
      for (int64_t c = 0; c < 2 * s_.classes; ++c)
        offset_->read(r, c, s_.part ? s_.part : s_.Pw, 0, s_.parts(), offsets_ + c * s_.parts());
    if (mask_) mask_->read(r, 0, s_.Pw, 0, s_.bins(), masks_);

    auto set = [&](Axis<A>& axis, const Side<A>& side, int64_t at, int64_t bins, A shift, int64_t extent) {
      axis.count = 0, axis.samples = 1;
      if (alive) lay_out(axis, s_, side, at, bins, shift, extent);
    };
    if (!offset_)
      for (int64_t pw = 0; pw < s_.Pw; ++pw) set(columns_[pw], x, pw, s_.Pw, A(0), s_.W);
    const int64_t outputs = s_.outputs(), each = outputs / s_.classes;
    for (int64_t ph = 0; ph < s_.Ph; ++ph) {
      if (!offset_) set(rows_[0], y, ph, s_.Ph, A(0), s_.H);
      for (int64_t pw = 0; pw < s_.Pw; ++pw) {
        const int64_t turn = ph * s_.Gh / s_.Ph * s_.Gw + pw * s_.Gw / s_.Pw;
        for (int64_t k = 0; k < s_.classes; ++k) {
          if (offset_) {
            const A* moved = offsets_ + s_.slot(k, ph, pw);
            set(rows_[0], y, ph, s_.Ph, dy * moved[s_.parts()], s_.H);
            set(columns_[0], x, pw, s_.Pw, dx * moved[0], s_.W);
          }
          const Axis<A>&rows = rows_[0], &columns = columns_[offset_ ? 0 : pw];
          const A share = 1 / std::max(rows.samples * columns.samples, A(1));
          const A factor = mask_ ? share * masks_[ph * s_.Pw + pw] : share;
          f(Bin{image, turn * outputs + k * each, k, ph, pw, factor, share, dy, dx, rows, columns});
        }
      }
    }
  }

 private:
  // Return whether the box reads anything at all; the image index is not to be trusted.
  bool place(const A (&box)[5], Side<A>& y, Side<A>& x) const {
    if (!(box[0] >= 0 && box[0] < A(s_.N)) || s_.H < 1 || s_.W < 1) return false;
    for (A v : box)
      if (!std::isfinite(v)) return false;
    const A scale = A(s_.scale), half = s_.counted || s_.aligned ? A(0.5) : A(0);
    if (s_.counted) {
      // std::round is half away from zero.
      x.start = std::round(box[1]) * scale - half, y.start = std::round(box[2]) * scale - half;
      x.size = std::max((std::round(box[3]) + 1) * scale - half - x.start, A(0.1));
      y.size = std::max((std::round(box[4]) + 1) * scale - half - y.start, A(0.1));
    } else {
      x.start = box[1] * scale - half, y.start = box[2] * scale - half;
      x.size = box[3] * scale - half - x.start, y.size = box[4] * scale - half - y.start;
      if (!s_.aligned) x.size = std::max(x.size, A(1)), y.size = std::max(y.size, A(1));
    }
    return std::isfinite(x.start) && std::isfinite(y.start) && std::isfinite(x.size * A(s_.gamma)) &&
           std::isfinite(y.size * A(s_.gamma)) && std::isfinite(x.size) && std::isfinite(y.size);
  }

  static void reserve(Arena& arena, std::vector<Axis<A>>& axes, int64_t count, int64_t extent) {
    axes.resize(count);
    for (auto& axis : axes) {
      arena.reserve(axis.index, extent);
      arena.reserve(axis.weight, extent);
      arena.reserve(axis.slope, extent);
    }
  }

  const Pool& s_;
  const Tensor& rois_;
  std::optional<Planes> offset_, mask_;
  std::vector<Axis<A>> rows_, columns_;
  A *offsets_, *masks_;
};

}  // namespace pliant
