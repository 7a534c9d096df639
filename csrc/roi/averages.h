// Averages over the bins of RoIs, weighted bilinearly: what RoIAlign and its relatives (position-sensitive, deformable)
// have in common. An operator is a Pool; a Walk goes over the bins of one RoI.
#pragma once

#include <vector>

#include "../maps/map.h"
#include "../maps/write.h"
#include "placement.h"

namespace pliant {

// What distinguishes the operators: sizes, channels, and the rule for samples.
struct Pool {
  const char* op;
  int64_t N, C, H, W, R;
  int64_t Ph, Pw;  // bins
  SampleRule rule;
  int64_t Gh = 1, Gw = 1;  // groups of channels: each bin reads the group at its place
  int64_t part = 0;        // offsets in each direction; 0 for one per bin
  int64_t classes = 1;     // classes of channels with offsets of their own

  Pool(const char* op, const Tensor& input, const Tensor& rois, const std::array<int64_t, 2>& size)
      : op(ranked(op, input, rois)),
        N(input.size(0)),
        C(input.size(1)),
        H(input.size(2)),
        W(input.size(3)),
        R(rois.size(0)),
        Ph(size[0]),
        Pw(size[1]) {}

  // Return `op` if the ranks are right: the sizes are read next.
  static const char* ranked(const char* op, const Tensor& input, const Tensor& rois) {
    require_fit(input.dim() == 4, op, "input");
    require_fit(rois.dim() == 2, op, "rois");
    return op;
  }

  int64_t bins() const { return Ph * Pw; }
  int64_t groups() const { return Gh * Gw; }
  int64_t outputs() const { return C / groups(); }
  int64_t each() const { return outputs() / classes; }
  // The offsets of a RoI are a block [2·classes][parts()]: of every class those of x, then those of y.
  int64_t parts() const { return part ? part * part : bins(); }
  int64_t part_width() const { return part ? part : Pw; }
  int64_t slot(int64_t k, int64_t ph, int64_t pw) const {
    return 2 * k * parts() + (part ? ph * part / Ph * part + pw * part / Pw : ph * Pw + pw);
  }
};

// The four operators, from their arguments.
inline Pool deform_roi_pool_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                               double scale, int64_t ratio, double gamma) {
  Pool s("deform_roi_pool", input, rois, numbers<2>(output_size, "deform_roi_pool", "output_size"));
  s.rule = {.samples = ratio, .scale = scale, .gamma = gamma};
  return s;
}

inline Pool roi_align_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
                         int64_t ratio, bool aligned) {
  Pool s("roi_align", input, rois, numbers<2>(output_size, "roi_align", "output_size"));
  s.rule = {.samples = ratio, .aligned = aligned, .scale = scale};
  return s;
}

inline Pool ps_roi_align_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                            double scale, int64_t ratio) {
  Pool s("ps_roi_align", input, rois, numbers<2>(output_size, "ps_roi_align", "output_size"));
  s.rule = {.samples = ratio, .scale = scale};
  s.Gh = s.Ph, s.Gw = s.Pw;
  return s;
}

inline Pool deform_psroi_pool_of(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                                 int64_t P, double scale, int64_t group, int64_t part, int64_t samples, double std) {
  Pool s("deform_psroi_pool", input, rois, {P, P});
  s.rule = {.samples = samples, .counted = true, .scale = scale, .gamma = std};
  s.Gh = s.Gw = group;
  s.part = part;
  require_fit(!offset || offset->dim() == 4, s.op, "offset");
  s.classes = offset ? offset->size(1) / 2 : 1;
  return s;
}

// Refuse tensors that do not fit each other. Image indices are not checked: a box of an image that does not exist reads
// nothing.
inline void require_pool(const Pool& s, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                         const std::optional<Tensor>& mask, const Tensor* grad = nullptr) {
  const ScalarType type = input.scalar_type();
  constexpr int64_t kMost = int64_t(1) << 31, kMostSamples = 1 << 16;
  auto sized = [](int64_t n) { return n > 0 && n < kMost; };
  auto require = [&](bool fits, const char* argument) { require_fit(fits, s.op, argument); };
  require(is_floating(type) && sized(s.C) && sized(s.H) && sized(s.W), "input");
  require(has_shape(rois, {s.R, 5}) && (rois.scalar_type() == type || rois.scalar_type() == ScalarType::Float), "rois");
  require(sized(s.Ph) && sized(s.Pw), "output_size");
  require(sized(s.Gh) && sized(s.Gw), "group_size");
  require(s.C % s.groups() == 0 && could_hold({s.C, s.H, s.W}), "input");
  require(could_hold({s.outputs(), s.Ph, s.Pw}), "output_size");
  require(s.rule.counted ? sized(s.part) && could_hold({s.outputs(), s.part, s.part}) : s.part == 0, "part_size");
  require(s.rule.samples < kMostSamples && (!s.rule.counted || s.rule.samples > 0),
          s.rule.counted ? "sample_per_part" : "sampling_ratio");
  require(sized(s.classes) && s.outputs() % s.classes == 0, "offset");
  const int64_t high = s.part ? s.part : s.Ph;
  require(!offset || (accompanies(*offset, type) && has_shape(*offset, {s.R, 2 * s.classes, high, s.part_width()})),
          "offset");
  require(!mask || (accompanies(*mask, type) && has_shape(*mask, {s.R, 1, s.Ph, s.Pw})), "mask");
  require(!grad || (grad->scalar_type() == type && has_shape(*grad, {s.R, s.outputs(), s.Ph, s.Pw})), "grad");
}

// Boxes, offsets and masks, and one thread's memory to walk over the bins of one RoI.
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

  // A bin of one class: `channel` is the first of its channels in the map's groups, `share` one over its samples,
  // `factor` that times its mask, `dy` and `dx` the pixels that an offset of 1 moves it by.
  struct Bin {
    int64_t image, channel, k, ph, pw;
    A factor, share, dy, dx;
    const Axis<A>&rows, &columns;
  };

  // Call f(bin) for every bin of RoI r and every class.
  template <class F>
  void each_bin(int64_t r, F&& f) {
    begin(r);
    const int64_t outputs = s_.outputs(), each = s_.each();
    for (int64_t ph = 0; ph < s_.Ph; ++ph) {
      if (!offset_) set(rows_[0], y_, ph, s_.Ph, A(0), s_.H);
      for (int64_t pw = 0; pw < s_.Pw; ++pw) {
        const int64_t group = ph * s_.Gh / s_.Ph * s_.Gw + pw * s_.Gw / s_.Pw;
        for (int64_t k = 0; k < s_.classes; ++k) {
          if (offset_) {
            const A* moved = offsets_ + s_.slot(k, ph, pw);
            set(rows_[0], y_, ph, s_.Ph, dy_ * moved[s_.parts()], s_.H);
            set(columns_[0], x_, pw, s_.Pw, dx_ * moved[0], s_.W);
          }
          const Axis<A>&rows = rows_[0], &columns = columns_[offset_ ? 0 : pw];
          const A share = 1 / std::max(rows.samples * columns.samples, A(1));
          const A factor = mask_ ? share * masks_[ph * s_.Pw + pw] : share;
          f(Bin{image_, group * outputs + k * each, k, ph, pw, factor, share, dy_, dx_, rows, columns});
        }
      }
    }
  }

 private:
  // Place RoI r, read its offsets and masks, and lay out the columns if no offset moves them.
  void begin(int64_t r) {
    A box[5];
    dispatch(rois_.scalar_type(), [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(rois_.const_data_ptr()) + r * rois_.stride(0);
      for (int64_t i = 0; i < 5; ++i) box[i] = A(from[i * rois_.stride(1)]);
    });
    alive_ = place_box(box, s_.rule, s_.N, y_, x_);
    image_ = alive_ ? int64_t(box[0]) : 0;
    dy_ = alive_ ? A(s_.rule.gamma) * y_.size : A(0), dx_ = alive_ ? A(s_.rule.gamma) * x_.size : A(0);
    if (offset_)
      for (int64_t c = 0; c < 2 * s_.classes; ++c)
        offset_->read(r, c, s_.part_width(), 0, s_.parts(), offsets_ + c * s_.parts());
    else
      for (int64_t pw = 0; pw < s_.Pw; ++pw) set(columns_[pw], x_, pw, s_.Pw, A(0), s_.W);
    if (mask_) mask_->read(r, 0, s_.Pw, 0, s_.bins(), masks_);
  }

  // Lay out one direction of a bin; a box that reads nothing has no rows and no columns.
  void set(Axis<A>& axis, const Side<A>& side, int64_t place, int64_t bins, A shift, int64_t extent) const {
    axis.count = 0, axis.samples = 1;
    if (alive_) lay_out(axis, s_.rule, side, place, bins, shift, extent);
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
  // The RoI that the walk is at.
  bool alive_ = false;
  int64_t image_ = 0;
  Side<A> y_, x_;
  A dy_ = 0, dx_ = 0;
};

// One thread's walk and memory.
template <class A>
struct PoolLane {
  Arena arena;
  std::optional<Walk<A>> walk;
  A *tile, *offset, *mask;

  // Make room for a tile, and for gradients of offsets and masks.
  void allocate(const Pool& s, const Tensor& rois, const std::optional<Tensor>& offsets,
                const std::optional<Tensor>& masks, int64_t values, int64_t offset_values, int64_t mask_values) {
    walk.emplace(s, rois, offsets, masks, arena);
    arena.reserve(tile, values);
    arena.reserve(offset, offset_values);
    arena.reserve(mask, mask_values);
    arena.allocate();
  }
};

}  // namespace pliant
