// Gradients of deformable convolution, tile by tile as in forward: turn the output's gradient into matrices, multiply
// it with the weight (the gradient of columns), dot that with the corners (offset, mask), collect its product with the
// columns (weight), and scatter it (input).
#include "../sampling/tiles.h"
#include "columns.h"
#include "products.h"
#include "sampler.h"
#include "stages.h"

namespace pliant {
namespace {

// The gradients to compute, and where they go.
struct Gradients {
  bool want_input, want_offset, want_weight, want_mask;
  Tensor input, offset, weight, mask;

  bool want_columns() const { return want_input || want_dots(); }
  bool want_dots() const { return want_offset || want_mask; }
};

// T is the type of maps, A that of sums, V that of the matrices that are multiplied.
template <class T, class A, class V>
class Backward {
 public:
  Backward(const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
           const std::optional<Tensor>& mask, const ConvShape& s, Gradients& out)
      : s_(s),
        out_(out),
        plan_(ProductPlan::of<V>(s)),
        pitch_(column_pitch(s, plan_.taps)),
        tiles_(s.N, s.P, blocking<V>().rows, 3 << 20, s.K * s.C * sizeof(A)),
        input_(input, s, plan_.taps),
        gradient_(grad, s, out.want_columns() || s.depthwise, out.want_weight && !s.depthwise),
        lanes_(lanes_for(tiles_.count)) {
    if (out.want_columns()) product_.emplace(weight, s, plan_, pitch_);
    if (out.want_input) sums_.emplace(out.input, s, plan_.taps, channels_last(input));
    for (auto& lane : lanes_) {
      Arena& arena = lane.arena;
      lane.sampler.emplace(s, offset, mask, arena, tiles_.largest, s.K * s.G);
      arena.reserve(lane.columns, out.want_weight ? tiles_.largest * pitch_ : 0);
      // Kept for all taps until the whole round of tiles is scattered.
      arena.reserve(lane.columns_grad, out.want_columns() ? plan_.chunks * tiles_.largest * pitch_ : 0);
      arena.reserve(lane.rows, tiles_.largest * gradient_.rows_room());
      arena.reserve(lane.turned, tiles_.largest * gradient_.turned_room());
      if (out.want_weight) lane.weight.emplace(s, plan_, pitch_, arena, tiles_.largest);
      arena.reserve(lane.plane, tiles_.largest);
      for (auto& dots : lane.dots) arena.reserve(dots, tiles_.largest);
      arena.allocate();
      if (lane.weight) lane.weight->clear();
    }
  }

  // Compute all images, a few at a time, in rounds of one tile per lane. Return false where a product failed.
  bool run() {
    const int64_t lanes = lanes_.size();
    for (int64_t n = 0; n < s_.N; n += s_.together()) {
      const int64_t images = std::min(s_.together(), s_.N - n), end = (n + images) * tiles_.per_image;
      input_.read(n, images);
      if (sums_) sums_->begin(n, images);
      for (int64_t round = n * tiles_.per_image; round < end; round += lanes) {
        const int64_t active = std::min(lanes, end - round);
        parallel_products(active, [&](int64_t i) { lanes_[i].tile = round + i, compute(lanes_[i]); });
        if (sums_) scatter_round(active);
      }
      if (sums_) sums_->template write<T>();
    }
    if (out_.want_weight) write_weight();
    return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.ok; });
  }

 private:
  using M = std::conditional_t<std::is_same_v<T, BFloat16>, T, A>;  // as in forward

  struct Lane {
    Arena arena;
    std::optional<Sampler<A>> sampler;
    std::optional<WeightSums<V>> weight;
    V *columns, *rows, *turned;
    A *columns_grad, *plane, *dots[4];
    int64_t tile;
    bool ok = true;
  };

  // All of a tile except the scatter, which adds to pixels that other tiles add to as well.
  void compute(Lane& lane) {
    const int64_t n = tiles_.image(lane.tile), p0 = tiles_.begin(lane.tile), count = tiles_.size(lane.tile);
    const GradientTile<V> grad = gradient_.turn(n, p0, count, lane.rows, lane.turned);
    lane.sampler->begin_tile(n, p0, count);
    for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
      A* const columns_grad = lane.columns_grad + chunk * tiles_.largest * pitch_;
      if (product_) lane.ok &= (*product_)(columns_grad, grad.rows, grad.rows_stride, count, chunk);
      for (int64_t j = 0; j < s_.G; ++j)
        for (int64_t k = 0; k < plan_.size(chunk); ++k) {
          const int64_t tap = plan_.first(chunk) + k;
          const Samples<A> at = lane.sampler->set(j * s_.K + tap);
          lane.sampler->locate_tap(at, j, tap);
          if (lane.weight) input_.gather(lane.columns, n, j, k, at, count);
          if (!out_.want_dots()) continue;
          input_.dots(lane.dots, columns_grad, n, j, k, at, count);
          write_dots(lane, at, n, j * s_.K + tap, p0, count);
        }
      if (!lane.weight) continue;
      if (s_.depthwise)
        lane.weight->add_depthwise(grad.rows, grad.rows_stride, lane.columns, count);
      else
        lane.ok &= lane.weight->add(grad.turned, grad.turned_stride, lane.columns, count, chunk);
    }
  }

  // Write the gradients of mask and offset of one tap, counted over all offset groups.
  void write_dots(const Lane& lane, const Samples<A>& at, int64_t n, int64_t tap, int64_t p0, int64_t count) {
    const int64_t taps = s_.G * s_.K;
    if (out_.want_mask) {
      mask_gradient(lane.plane, lane.dots, at, count);
      write_run(out_.mask, (n * taps + tap) * s_.P + p0, lane.plane, count);
    }
    if (out_.want_offset) {
      row_gradient(lane.plane, lane.dots, at, count);
      write_run(out_.offset, 2 * (n * taps + tap) * s_.P + p0, lane.plane, count);
      column_gradient(lane.plane, lane.dots, at, count);
      write_run(out_.offset, (2 * (n * taps + tap) + 1) * s_.P + p0, lane.plane, count);
    }
  }

  // Scatter the tiles of a round. Threads split the channels, so that every sum keeps its order.
  void scatter_round(int64_t tiles) {
    const int64_t slices = std::min<int64_t>(lanes_.size(), (s_.C + 15) / 16);
    parallel(slices, 1, [&](int64_t begin, int64_t end) {
      const int64_t c0 = s_.C * begin / slices / 16 * 16, c1 = end == slices ? s_.C : s_.C * end / slices / 16 * 16;
      for (int64_t i = 0; i < tiles; ++i) scatter(lanes_[i], c0, c1);
    });
  }

  // Channels [c0, c1) of one tile.
  void scatter(const Lane& lane, int64_t c0, int64_t c1) const {
    const int64_t n = tiles_.image(lane.tile), count = tiles_.size(lane.tile);
    for (int64_t j = 0; j < s_.G; ++j)
      for (int64_t k = 0; k < s_.K; ++k)
        sums_->scatter(lane.columns_grad + k / plan_.taps * tiles_.largest * pitch_, n, j, k % plan_.taps,
                       lane.sampler->set(j * s_.K + k), c0, c1, count);
  }

  // Add up the lanes' sums of the weight's gradient, in order, and write them as [O][C/g][K].
  void write_weight() {
    T* to = static_cast<T*>(out_.weight.mutable_data_ptr());
    parallel(s_.O, 8, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t c = 0; c < s_.Cg; ++c)
          for (int64_t k = 0; k < s_.K; ++k) {
            const int64_t from = s_.depthwise ? k * s_.C + o : (o * s_.K + k) * s_.Cg + c;
            A total = 0;
            for (const auto& lane : lanes_) total += lane.weight->sums()[from];
            to[(o * s_.Cg + c) * s_.K + k] = T(total);
          }
    });
  }

  const ConvShape& s_;
  Gradients& out_;
  const ProductPlan plan_;
  const int64_t pitch_;
  const Tiles tiles_;
  ConvInput<A, M> input_;
  const OutputGradient<V> gradient_;
  std::optional<ColumnsProduct<V>> product_;
  std::optional<ImageSums<A>> sums_;
  std::vector<Lane> lanes_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    const std::optional<Tensor>& mask, bool clamp, int64_t wanted) {
  const ConvGeometry geometry(stride, padding, dilation, clamp);
  require_fit(conv_fits(input, offset, weight, std::nullopt, mask, geometry), "deform_conv2d");
  const ConvShape s(input, offset, weight, geometry);
  require_fit(grad.scalar_type() == input.scalar_type() && has_shape(grad, {s.N, s.O, s.Ho, s.Wo}), "deform_conv2d");
  const bool want_input = wanted & 1, want_offset = wanted & 2, want_weight = wanted & 4,
             want_mask = mask && (wanted & 8);
  Gradients out{want_input,
                want_offset,
                want_weight,
                want_mask,
                gradient_map(want_input, input, channels_last(input), input),
                gradient_map(want_offset, offset, false, input),
                gradient_map(want_weight, weight, false, input),
                gradient_map(want_mask, mask ? *mask : offset, false, input)};
  bool ok = true;
  dispatch_products(input.scalar_type(), !s.depthwise, [&]<class T, class A, class V>(T, A, V) {
    ok = Backward<T, A, V>(grad, input, offset, weight, mask, s, out).run();
  });
  STD_TORCH_CHECK(ok, "deform_conv2d: a matrix product failed");
  return {out.input, out.offset, out.weight, out.mask};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv2d_backward", TORCH_BOX(&pliant::deform_conv2d_backward));
}
