// Deformable convolution: tiles of output positions are gathered into columns that stay in cache, and multiplied with
// the weight. Maps are channels-last inside, sums are float (or double).
#include "../sampling/tiles.h"
#include "columns.h"
#include "passes.h"
#include "products.h"
#include "sampler.h"

namespace pliant {
namespace {

// T is the type of maps, A that of sums, V that of the matrices that are multiplied.
template <class T, class A, class V>
class Forward {
 public:
  Forward(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
          const std::optional<Tensor>& mask, const Tensor* packed, const ConvShape& s, Tensor& output, bool last)
      : s_(s),
        plan_(ProductPlan::of<V>(s)),
        pitch_(column_pitch(s, plan_.taps)),
        // torch's product packs the weight for each tile: its tiles are as large as level-3 cache allows.
        tiles_(s.N, s.P, blocking<V>().rows, plan_.packed ? 384 << 10 : 6 << 20, pitch_ * sizeof(V)),
        input_(input, s, plan_.taps),
        product_(weight, bias, packed, s, plan_, pitch_),
        last_(last),
        out_(static_cast<T*>(output.mutable_data_ptr())),
        lanes_(lanes_for(tiles_.count)) {
    for (auto& lane : lanes_) {
      lane.sampler.emplace(s, offset, mask, lane.arena, tiles_.largest, s.depthwise ? s.K : 1);
      lane.arena.reserve(lane.columns, s.depthwise ? 0 : tiles_.largest * pitch_);
      lane.arena.reserve(lane.taps, s.depthwise ? s.K * (s.volume ? 2 : 1) : 0);
      lane.arena.reserve(lane.result, direct() ? 0 : tiles_.largest * s.O);
      lane.arena.allocate();
    }
  }

  // Compute all images, a few at a time. Return false where a product failed.
  bool run() {
    const int64_t lanes = lanes_.size();
    for (int64_t n = 0; n < s_.N; n += s_.together()) {
      const int64_t images = std::min(s_.together(), s_.N - n), first = n * tiles_.per_image,
                    count = images * tiles_.per_image;
      input_.read(n, images);
      parallel_products(lanes, [&](int64_t i) {
        for (int64_t t = count * i / lanes; t < count * (i + 1) / lanes; ++t) compute(lanes_[i], first + t);
      });
    }
    return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.ok; });
  }

 private:
  // bfloat16 maps are widened as they are read, half the bytes of a copy in float. float16 is not widened as fast
  // everywhere, so its maps are copied.
  using M = std::conditional_t<std::is_same_v<T, BFloat16>, T, A>;

  struct Lane {
    Arena arena;
    std::optional<Sampler<A>> sampler;
    V* columns;
    A* result;
    Tap<A, M>* taps;
    bool ok = true;
  };

  // Whether a product [positions][O] is written to the output itself, because that is its layout and type.
  bool direct() const { return std::is_same_v<T, A> && last_; }

  void compute(Lane& lane, int64_t tile) {
    const int64_t n = tiles_.image(tile), p0 = tiles_.begin(tile), count = tiles_.size(tile);
    T* const first = out_ + n * s_.O * s_.P + p0 * (last_ ? s_.O : 1);
    A* const result = direct() ? reinterpret_cast<A*>(first) : lane.result;
    lane.sampler->begin_tile(n, p0, count);
    if (s_.depthwise)
      blend(lane, result, n, count);
    else
      multiply(lane, result, n, count);
    if (!direct()) write_tile(first, result, count, s_.O, s_.P, last_);
  }

  // Depthwise: no product, so no columns; all taps of a position are added up in registers.
  void blend(Lane& lane, A* result, int64_t n, int64_t count) {
    for (int64_t j = 0; j < s_.G; ++j) {
      for (int64_t k = 0; k < s_.K; ++k) lane.sampler->locate_tap(lane.sampler->set(k), j, k);
      if constexpr (std::is_same_v<V, A>)
        input_.blend(result, n, j, lane.sampler->set(0), tiles_.largest, lane.taps, product_.weight(), product_.bias(),
                     count);
    }
  }

  // Gather the columns of one chunk of taps after another and multiply them.
  void multiply(Lane& lane, A* result, int64_t n, int64_t count) {
    const Samples<A> at = lane.sampler->set(0);
    for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
      const int64_t k0 = plan_.first(chunk);
      for (int64_t j = 0; j < s_.G; ++j)
        for (int64_t k = 0; k < plan_.size(chunk); ++k) {
          lane.sampler->locate_tap(at, j, k0 + k);
          input_.gather(lane.columns, n, j, k, at, count);
        }
      lane.ok &= product_(result, lane.columns, count, chunk);
    }
  }

  const ConvShape& s_;
  const ProductPlan plan_;
  const int64_t pitch_;
  const Tiles tiles_;
  ConvInput<A, M> input_;
  const OutputProduct<V> product_;
  const bool last_;
  T* const out_;
  std::vector<Lane> lanes_;
};

}  // namespace

bool convolve(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& mask, const ConvShape& s, Tensor& output, bool last, const Tensor* packed) {
  if (s.N == 0) return true;
  bool ok = true;
  dispatch_products(input.scalar_type(), !s.depthwise, [&]<class T, class A, class V>(T, A, V) {
    if (packed) {
      const int64_t size = packed_size<V>(s, ProductPlan::of<V>(s));
      require_fit(
          size > 0 && packed->scalar_type() == kScalarType<V> && has_shape(*packed, {size}) && packed->stride(0) == 1,
          "deform_conv2d_packed", "packed");
    }
    ok = Forward<T, A, V>(input, offset, weight, bias, mask, packed, s, output, last).run();
  });
  return ok;
}

// The weight as products read it; empty where they read the weight itself.
Tensor pack(const Tensor& weight, const ConvShape& s) {
  std::optional<Tensor> packed;
  dispatch_products(weight.scalar_type(), !s.depthwise, [&]<class T, class A, class V>(T, A, V) {
    const ProductPlan plan = ProductPlan::of<V>(s);
    const int64_t sizes[] = {packed_size<V>(s, plan)};
    packed =
        torch::stable::empty({sizes, 1}, kScalarType<V>, std::nullopt, weight.device(), std::nullopt, std::nullopt);
    if constexpr (kPacks<V>)
      if (sizes[0] > 0) {
        Panels<V> panels = weight_panels<V>(s, plan, static_cast<V*>(packed->mutable_data_ptr()));
        fill_panels(panels, Weights<V>(weight, s), s);
      }
  });
  return *packed;
}

}  // namespace pliant
