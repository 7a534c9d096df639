// Deformable convolution: tiles of output positions, gathered into columns that stay in cache, times the weight. Maps are
// channels-last inside, sums are float (or double).
#include "shape.h"

namespace pliant {
namespace {

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation, const std::optional<Tensor>& mask, bool clamp) {
  const Geometry geometry = geometry_of(stride, padding, dilation);
  check(input, offset, weight, bias, mask, geometry);
  const Shape s(input, offset, weight, geometry, clamp);
  const bool last = channels_last(input);
  Tensor output = empty_map(input, s.N, s.O, s.Ho, s.Wo, last);
  if (s.N == 0) return output;
  std::atomic<bool> ok{true};

  // T is the type of maps, A that of sums, V that of the matrices multiplied.
  auto run = [&]<class T, class A, class V>(T, A, V) {
    // bfloat16 widens as fast as it is read: no copy in float, half of the bytes. float16 does not everywhere.
    using M = std::conditional_t<std::is_same_v<T, BFloat16>, T, A>;
    Weights<V> weights(weight, s);
    std::vector<V> biases(s.O);
    if (bias)
      dispatch(bias->scalar_type(), [&](auto z) {
        const auto* b = static_cast<const decltype(z)*>(bias->const_data_ptr());
        for (int64_t o = 0; o < s.O; ++o) biases[o] = V(A(b[o * bias->stride(0)]));
      });

    const int64_t KCg = s.K * s.Cg;
    // Our own product takes the columns of a few taps at a time, as they are gathered: they fit into level-2 cache. torch's
    // packs the whole weight at each call: all taps at once, and tiles as large as level-3 cache allows.
    const bool ours = our_products<V>() && !s.depthwise;
    const int64_t taps = ours ? pieces(s.K, pieces(KCg, kDepth)) : s.K;
    Input<A, M> maps(input, s, taps);
    const int64_t pitch = maps.pitch;
    const Tiles tiles(s, ours ? 384 << 10 : 6 << 20, pitch * sizeof(V));
    const int64_t lanes = std::min<int64_t>(torch::stable::get_num_threads(), tiles.count);
    Panels<V> panels;
    if (ours)
      panels = Panels<V>(s.g, KCg, s.Og, taps * s.Cg, 1, KCg, kPanel * KCg,
                         [&](int64_t q, int64_t n, int64_t count, V* room) {
                           return weights.filters(q * s.Og + n, count, room);
                         });
    const V* const ordered = ours ? nullptr : weights.data();
    // Products are [positions][O]: written where they belong if that is the output's form, else put there afterwards.
    const bool direct = std::is_same_v<T, V> && last;
    T* const out = static_cast<T*>(output.mutable_data_ptr());

    struct Lane {
      Arena arena;
      std::unique_ptr<Sampler<A>> sampler;
      V *columns, *result;
      Tap<A, M>* taps;
    };
    std::vector<Lane> own(lanes);
    for (auto& lane : own) {
      lane.sampler = std::make_unique<Sampler<A>>(s, offset, mask, lane.arena, tiles.largest, s.depthwise ? s.K : 1);
      lane.arena.reserve(lane.columns, s.depthwise ? 0 : tiles.largest * pitch);
      lane.arena.reserve(lane.taps, s.depthwise ? s.K : 0);
      lane.arena.reserve(lane.result, direct ? 0 : tiles.largest * s.O);
      lane.arena.allocate();
    }

    // result = bias + columns·weight, or result += columns·weight for taps after the first ones.
    auto product = [&](const V* columns, V* result, int64_t count, int64_t k0) {
      for (int64_t q = 0; q < s.g; ++q) {
        const V* const group = columns + q * taps * s.Cg;
        V* const to = result + q * s.Og;
        const V* const start = k0 == 0 ? biases.data() + q * s.Og : to;
        if (ours)
          panels.multiply(to, s.O, start, k0 == 0 ? 0 : s.O, group, pitch, count, q, k0 / taps);
        else if (!mm<V>({to, count, s.Og, s.O, 1}, {group, count, KCg, pitch, 1},
                        {ordered + q * s.Og * KCg, KCg, s.Og, 1, KCg}))
          ok = false;
      }
      if (bias && !ours)
        for (int64_t p = 0; p < count; ++p)
          for (int64_t o = 0; o < s.O; ++o) result[p * s.O + o] = V(A(result[p * s.O + o]) + A(biases[o]));
    };

    auto compute = [&](Lane& lane, int64_t tile) {
      const int64_t n = tiles.image(tile), p0 = tiles.begin(tile), count = tiles.size(tile);
      const Samples<A> at = lane.sampler->set(0, tiles.largest);
      T* const first = out + n * s.O * s.P + p0 * (last ? s.O : 1);
      V* const result = direct ? reinterpret_cast<V*>(first) : lane.result;
      lane.sampler->begin_tile(p0, count);
      if (s.depthwise) {
        // No product, so no columns: all taps of a position are added up in registers.
        for (int64_t j = 0; j < s.G; ++j) {
          for (int64_t k = 0; k < s.K; ++k)
            lane.sampler->locate_tap(lane.sampler->set(k, tiles.largest), n, j, k, p0, count);
          if constexpr (std::is_same_v<V, A>)
            maps.blend(result, n, j, at, tiles.largest, lane.taps, ordered, biases.data(), count);
        }
      } else {
        for (int64_t k0 = 0; k0 < s.K; k0 += taps) {
          for (int64_t j = 0; j < s.G; ++j)
            for (int64_t k = k0; k < std::min(k0 + taps, s.K); ++k) {
              lane.sampler->locate_tap(at, n, j, k, p0, count);
              maps.gather(lane.columns, n, j, k - k0, at, count);
            }
          product(lane.columns, result, count, k0);
        }
      }
      if (direct) return;
      if (last) {
        for (int64_t i = 0; i < count * s.O; ++i) first[i] = T(result[i]);
        return;
      }
      transpose_all(first, s.P, result, s.O, s.O, count);
    };
    for (int64_t n = 0; n < s.N; n += s.together()) {
      const int64_t images = std::min(s.together(), s.N - n), all = images * tiles.per_image;
      maps.read(n, images);
      parallel_products(lanes, [&](int64_t i) {
        for (int64_t t = all * i / lanes; t < all * (i + 1) / lanes; ++t) compute(own[i], n * tiles.per_image + t);
      });
    }
  };
  by_products(input.scalar_type(), s.depthwise, run);
  STD_TORCH_CHECK(ok, "deform_conv2d: a matrix product failed");
  return output;
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&pliant::deform_conv2d));
}
