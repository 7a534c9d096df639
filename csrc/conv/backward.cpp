// Gradients of deformable convolution, tile by tile as in forward: turn the output's gradient into matrices, multiply
// it with the weight (the gradient of columns), dot that with the corners (offset, mask), collect its product with the
// columns (weight), and scatter it (input).
#include "../sampling/tiles.h"
#include "columns.h"
#include "passes.h"
#include "products.h"
#include "sampler.h"
#include "stages.h"

namespace pliant {
namespace {

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
        tiles_(s.N, s.P, blocking<V>().rows, bytes(s, plan_), s.K * s.C * sizeof(A), out.alike),
        gradient_(grad, s, out.want_columns() || s.depthwise, out.want_weight && !s.depthwise),
        lanes_(lanes_for(tiles_.count)) {
    if (out.want_weight || out.want_dots()) input_.emplace(input, s, plan_.taps);
    if (out.want_columns()) product_.emplace(weight, s, plan_, pitch_);
    if (out.want_input) sums_.emplace(out.input, s, plan_.taps, out.last);
    if (out.bias) bias_ = values(*out.bias);
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
      for (int i = 0; i < (s.volume ? 8 : 4); ++i) arena.reserve(lane.dots[i], tiles_.largest);
      arena.reserve(lane.far_plane, s.volume ? tiles_.largest : 0);
      arena.allocate();
      if (lane.weight) lane.weight->clear();
    }
  }

  // Compute all images, a few at a time, in rounds of one tile per lane. Return false where a product failed.
  bool run() {
    const int64_t lanes = lanes_.size();
    for (int64_t n = 0; n < s_.N; n += s_.together()) {
      const int64_t images = std::min(s_.together(), s_.N - n), end = (n + images) * tiles_.per_image;
      if (input_) input_->read(n, images);
      if (sums_) sums_->begin(n, images, bias_.empty() ? nullptr : bias_.data());
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
    A *columns_grad, *plane, *far_plane, *dots[8];
    int64_t tile;
    bool ok = true;
  };

  // Bytes of a tile's columns. Every tile reads the packed weight and adds to its gradient, so the columns are three
  // times as large; beside a small weight, what is left of level-2 cache holds the pixels around the tile.
  static int64_t bytes(const ConvShape& s, const ProductPlan& plan) {
    const int64_t weight = s.O * s.K * s.Cg * int64_t(sizeof(A));
    return plan.packed ? std::clamp<int64_t>(3 * weight, 384 << 10, 3 << 20) : 3 << 20;
  }

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
          read_corners(lane, at, n, j, k, columns_grad, count);
          if (out_.want_dots()) write_dots(lane, at, n, j * s_.K + tap, p0, count);
        }
      if (!lane.weight) continue;
      if (s_.depthwise)
        lane.weight->add_depthwise(grad.rows, grad.rows_stride, lane.columns, count);
      else
        lane.ok &= lane.weight->add(grad.turned, grad.turned_stride, lane.columns, count, chunk);
    }
  }

  // Gather the columns of tap k and dot their gradient, a few positions at a time: those corners stay in level-1 cache.
  void read_corners(const Lane& lane, const Samples<A>& at, int64_t n, int64_t j, int64_t k, const A* columns_grad,
                    int64_t count) const {
    const int64_t step = s_.framed ? count : 32;
    for (int64_t p = 0; p < count; p += step) {
      const Samples<A> some = at.from(p);
      const int64_t size = std::min(step, count - p);
      if (lane.weight) input_->gather(lane.columns + p * pitch_, n, j, k, some, size);
      if (!out_.want_dots()) continue;
      A* sums[8];
      for (int i = 0; i < (s_.volume ? 8 : 4); ++i) sums[i] = lane.dots[i] + p;
      input_->dots(sums, columns_grad + p * pitch_, n, j, k, some, size);
    }
  }

  // Write the gradients of mask and offset of one tap, counted over all offset groups.
  void write_dots(const Lane& lane, const Samples<A>& at, int64_t n, int64_t tap, int64_t p0, int64_t count) {
    const int64_t axes = s_.geometry.axes, channel = n * s_.G * s_.K + tap;
    A *const near = lane.plane, *const far = lane.far_plane;
    if (s_.volume) mask_gradient(far, lane.dots + 4, at, count);
    if (out_.want_mask) {
      mask_gradient(near, lane.dots, at, count);
      if (s_.volume) volume_mask_gradient(near, far, at, count);
      write_run(out_.mask, channel * s_.P + p0, near, count);
    }
    if (!out_.want_offset) return;
    if (s_.volume) {
      mask_gradient(near, lane.dots, at, count);
      plane_gradient(near, far, at, count);
      write_run(out_.offset, axes * channel * s_.P + p0, near, count);
    }
    if (axes > 1) write_axis(lane, at, row_gradient<A>, (axes * channel + axes - 2) * s_.P + p0, count);
    write_axis(lane, at, column_gradient<A>, (axes * channel + axes - 1) * s_.P + p0, count);
  }

  // Write the gradient of the offset along y or x, which both planes of a volume add to, from element `to` on.
  void write_axis(const Lane& lane, const Samples<A>& at,
                  void (*gradient)(A*, const A* const[4], const Samples<A>&, int64_t), int64_t to, int64_t count) {
    gradient(lane.plane, lane.dots, at, count);
    if (s_.volume) {
      gradient(lane.far_plane, lane.dots + 4, at.far(), count);
      for (int64_t i = 0; i < count; ++i) lane.plane[i] += lane.far_plane[i];
    }
    write_run(out_.offset, to, lane.plane, count);
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
      for (int64_t k = 0; k < s_.K; ++k) {
        const Samples<A> at = lane.sampler->set(j * s_.K + k);
        const A* const grad = lane.columns_grad + k / plan_.taps * tiles_.largest * pitch_;
        sums_->scatter(grad, n, j, k % plan_.taps, at, c0, c1, count);
      }
  }

  // The elements of a vector as A.
  static std::vector<A> values(const Tensor& t) {
    std::vector<A> found(t.size(0));
    dispatch(t.scalar_type(), [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(t.const_data_ptr());
      for (int64_t i = 0; i < t.size(0); ++i) found[i] = A(from[i * t.stride(0)]);
    });
    return found;
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
  std::optional<ConvInput<A, M>> input_;
  const OutputGradient<V> gradient_;
  std::optional<ColumnsProduct<V>> product_;
  std::optional<ImageSums<A>> sums_;
  std::vector<A> bias_;
  std::vector<Lane> lanes_;
};

}  // namespace

bool differentiate(const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
                   const std::optional<Tensor>& mask, const ConvShape& s, Gradients& out) {
  bool ok = true;
  dispatch_products(grad.scalar_type(), !s.depthwise, [&]<class T, class A, class V>(T, A, V) {
    ok = Backward<T, A, V>(grad, input, offset, weight, mask, s, out).run();
  });
  return ok;
}

}  // namespace pliant
