// Gradients of deformable convolution: the tiles of forward again, the gradient of their columns by one product, then
// read against the corners (offset, mask), multiplied with the columns (weight) and scattered (input).
#include "shape.h"

namespace pliant {
namespace {

// What products are elsewhere, for one filter a channel: columns[p][k][c] = grad[p][c]·factors[k][c].
template <class A>
PLIANT_INLINE void spread_impl(A* columns, const A* grad, int64_t stride, const A* factors, int64_t K, int64_t C,
                               int64_t count) {
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < K; ++k) {
      A* __restrict to = columns + (p * K + k) * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] = grad[p * stride + c] * factors[k * C + c];
    }
}

// sums[k][c] += Σ_p grad[p][c]·columns[p][k][c].
template <class A>
PLIANT_INLINE void collect_impl(A* sums, const A* grad, int64_t stride, const A* columns, int64_t K, int64_t C,
                                int64_t count) {
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < K; ++k) {
      A* __restrict to = sums + k * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] += grad[p * stride + c] * columns[(p * K + k) * C + c];
    }
}

PLIANT_CLONES void add(float* __restrict sums, const BFloat16* more, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sums[i] += float(more[i]);
}
PLIANT_CLONES void spread(float* o, const float* g, int64_t s, const float* f, int64_t K, int64_t C, int64_t n) {
  spread_impl(o, g, s, f, K, C, n);
}
PLIANT_CLONES void spread(double* o, const double* g, int64_t s, const double* f, int64_t K, int64_t C, int64_t n) {
  spread_impl(o, g, s, f, K, C, n);
}
PLIANT_CLONES void collect(float* o, const float* g, int64_t s, const float* x, int64_t K, int64_t C, int64_t n) {
  collect_impl(o, g, s, x, K, C, n);
}
PLIANT_CLONES void collect(double* o, const double* g, int64_t s, const double* x, int64_t K, int64_t C, int64_t n) {
  collect_impl(o, g, s, x, K, C, n);
}

// The gradient of some images of the input while it grows, in A: framed, or channels-last, in the result's own memory
// where that is its form.
template <class A>
class Sums {
 public:
  Sums(Tensor& result, const Shape& s, bool last) : result_(result), s_(s), last_(last) {
    if (s.framed)
      framed_.emplace(s.together(), s.C, s.H, s.W);
    else if (!last || int32_t(result.scalar_type()) != kScalarType<A>)
      own_ = Buffer<A>(s.together() * size());
  }

  // From here on images [first, first + count), zero.
  void begin(int64_t first, int64_t count) {
    first_ = first, count_ = count;
    if (framed_) return framed_->clear(count);
    data_ = own_ ? own_.get() : static_cast<A*>(result_.mutable_data_ptr()) + first * size();
    parallel(count * size(), 1 << 15, [&](int64_t i, int64_t end) { std::fill(data_ + i, data_ + end, A(0)); });
  }

  // Add the gradient of one tap's columns, tap k of them, channels [c0, c1) alone.
  template <class V>
  void scatter(const V* grad, int64_t pitch, int64_t n, const std::vector<Segment>& parts, int64_t k,
               const Samples<A>& at, int64_t c0, int64_t c1, int64_t count) const {
    if (framed_) return pliant::scatter(framed_->image(n - first_), grad + k * s_.C, pitch, at, framed_->row(), count);
    for (const auto& part : parts) {
      const int64_t begin = std::max(part.c0, c0), end = std::min(part.c0 + part.size, c1);
      if (begin < end)
        pliant::scatter(data_ + (n - first_) * size() + begin, grad + part.first + k * part.step + begin - part.c0,
                        pitch, at, s_.C, end - begin, count);
    }
  }

  // Put those images into the result, whose type is T.
  template <class T>
  void write() const {
    T* const to = static_cast<T*>(result_.mutable_data_ptr()) + first_ * size();
    if (framed_)
      framed_->write(to, count_, last_, s_.clamp);
    else if (own_)
      write_map(to, own_.get(), count_, s_.C, s_.H * s_.W, last_);
  }

 private:
  int64_t size() const { return s_.H * s_.W * s_.C; }

  Tensor& result_;
  const Shape& s_;
  bool last_;
  int64_t first_ = 0, count_ = 0;
  std::optional<Framed<A>> framed_;
  Buffer<A> own_;
  A* data_ = nullptr;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(const Tensor& grad, const Tensor& input,
                                                                  const Tensor& offset, const Tensor& weight,
                                                                  const std::vector<int64_t>& stride,
                                                                  const std::vector<int64_t>& padding,
                                                                  const std::vector<int64_t>& dilation,
                                                                  const std::optional<Tensor>& mask, bool clamp,
                                                                  int64_t wanted) {
  const Geometry geometry = geometry_of(stride, padding, dilation);
  check(input, offset, weight, std::nullopt, mask, geometry);
  const Shape s(input, offset, weight, geometry, clamp);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == input.scalar_type() && grad.size(0) == s.N &&
                      grad.size(1) == s.O && grad.size(2) == s.Ho && grad.size(3) == s.Wo,
                  "deform_conv2d: the gradient does not have the output's shape and dtype");
  const bool want_input = wanted & 1, want_offset = wanted & 2, want_weight = wanted & 4,
             want_mask = mask && (wanted & 8);
  const bool last = channels_last(input);
  const Tensor none = torch::stable::new_empty(input, {0});
  auto map_or_none = [&](bool want, const Tensor& t, bool format) {
    return want ? empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3), format) : none;
  };
  Tensor grad_input = map_or_none(want_input, input, last);
  Tensor grad_offset = map_or_none(want_offset, offset, false);
  Tensor grad_weight = map_or_none(want_weight, weight, false);
  Tensor grad_mask = map_or_none(want_mask, mask ? *mask : offset, false);
  std::atomic<bool> ok{true};

  // T is the type of maps, A that of sums, V that of the matrices multiplied.
  auto run = [&]<class T, class A, class V>(T, A, V) {
    using M = std::conditional_t<std::is_same_v<T, BFloat16>, T, A>;  // as in forward
    Weights<V> weights(weight, s);
    const Planes grads(grad);
    const int64_t KC = s.K * s.C, KCg = s.K * s.Cg;
    // As in forward, our own product takes a few taps at a time. The gradient of columns is kept until all are scattered.
    const bool ours = our_products<V>() && !s.depthwise;
    const int64_t taps = ours ? pieces(s.K, pieces(KCg, kDepth)) : s.K, chunks = pieces(s.K, taps);
    Input<A, M> maps(input, s, taps);
    const int64_t pitch = maps.pitch;
    const Tiles tiles(s, 3 << 20, KC * sizeof(V));
    const int64_t lanes = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(tiles.count, 1));
    const bool want_columns_grad = want_input || want_offset || want_mask;
    const V* const ordered = want_columns_grad ? weights.data() : nullptr;
    std::vector<Panels<V>> panels;
    for (int64_t k = 0; k < s.K && ours && want_columns_grad; k += taps)
      panels.emplace_back(s.g, s.Og, std::min(taps, s.K - k) * s.Cg, s.Og, KCg, 1, 0,
                          [&](int64_t q, int64_t n, int64_t, V*) { return ordered + q * s.Og * KCg + k * s.Cg + n; });
    const std::vector<V> nothing(taps * s.Cg, V(0.0f));

    // Products want a tile's gradient once as [positions][O], once as [O][positions]: the gradient's own memory serves as
    // the one that it is, if it is dense and of the type that is multiplied.
    const bool in_place = std::is_same_v<T, V> && grads.h == s.Wo * grads.w, as_rows = in_place && grads.c == 1,
               as_turned = in_place && !as_rows && grads.w == 1;
    const bool want_rows = want_columns_grad || s.depthwise, want_turned = want_weight && !s.depthwise;

    std::optional<Sums<A>> sums;
    if (want_input) sums.emplace(grad_input, s, last);

    struct Lane {
      Arena arena;
      std::unique_ptr<Sampler<A>> sampler;
      V *columns, *columns_grad, *rows, *turned, *panel, *product;
      A *weight, *row;
      A* dots[4];
      int64_t tile;
    };
    std::vector<Lane> own(lanes);
    for (auto& lane : own) {
      lane.sampler = std::make_unique<Sampler<A>>(s, offset, mask, lane.arena, tiles.largest, s.K * s.G);
      lane.arena.reserve(lane.columns, want_weight ? tiles.largest * pitch : 0);
      lane.arena.reserve(lane.columns_grad, want_columns_grad ? chunks * tiles.largest * pitch : 0);
      lane.arena.reserve(lane.rows, want_rows && !as_rows ? tiles.largest * s.O : 0);
      lane.arena.reserve(lane.turned, (want_turned || !as_rows) && !as_turned ? tiles.largest * s.O : 0);
      lane.arena.reserve(lane.panel, ours && want_weight ? tiles.largest * kPanel : 0);
      lane.arena.reserve(lane.product, want_turned && !std::is_same_v<V, A> ? s.O * KCg : 0);
      lane.arena.reserve(lane.weight, want_weight ? s.O * KCg : 0);
      lane.arena.reserve(lane.row, tiles.largest);
      for (auto& dots : lane.dots) lane.arena.reserve(dots, tiles.largest);
      lane.arena.allocate();
      if (want_weight) std::fill_n(lane.weight, s.O * KCg, A(0));
    }

    // Write one plane of a tile's offset or mask gradient, which is dense, in its own dtype.
    auto write = [&](Tensor& t, int64_t n, int64_t channel, int64_t p0, const A* row, int64_t count) {
      dispatch(t.scalar_type(), [&](auto z) {
        using D = decltype(z);
        D* to = static_cast<D*>(t.mutable_data_ptr()) + (n * t.size(1) + channel) * s.P + p0;
        for (int64_t i = 0; i < count; ++i) to[i] = D(row[i]);
      });
    };

    // All of a tile but the scatter, which meets other tiles' pixels.
    auto compute = [&](Lane& lane) {
      const int64_t n = tiles.image(lane.tile), p0 = tiles.begin(lane.tile), count = tiles.size(lane.tile);
      const V *rows = lane.rows, *turned = lane.turned;
      int64_t rows_stride = s.O, turned_stride = count;
      const V* const first = static_cast<const V*>(grads.data) + n * grads.n + p0 * grads.w;
      if (as_rows)
        rows = first, rows_stride = grads.w;
      else if (as_turned)
        turned = first, turned_stride = grads.c;
      else
        for (int64_t o = 0; o < s.O; ++o) grads.read(n, o, s.Wo, p0, count, lane.turned + o * count);
      if (want_turned && as_rows) transpose_all(lane.turned, turned_stride, rows, rows_stride, s.O, count);
      if (want_rows && !as_rows) transpose_all(lane.rows, rows_stride, turned, turned_stride, count, s.O);

      lane.sampler->begin_tile(p0, count);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t k0 = chunk * taps, k1 = std::min(k0 + taps, s.K), width = (k1 - k0) * s.Cg;
        V* const columns_grad = lane.columns_grad + chunk * tiles.largest * pitch;
        if constexpr (std::is_same_v<V, A>)
          if (want_columns_grad && s.depthwise) spread(columns_grad, rows, rows_stride, ordered, s.K, s.C, count);
        for (int64_t q = 0; q < s.g && want_columns_grad && !s.depthwise; ++q) {
          V* const to = columns_grad + q * taps * s.Cg;
          const V* const left = rows + q * s.Og;
          if (ours)
            panels[chunk].multiply(to, pitch, nothing.data(), 0, left, rows_stride, count, q, 0);
          else if (!mm<V>({to, count, width, pitch, 1}, {left, count, s.Og, rows_stride, 1},
                          {ordered + q * s.Og * KCg, s.Og, width, KCg, 1}))
            ok = false;
        }

        for (int64_t j = 0; j < s.G; ++j)
          for (int64_t k = k0; k < k1; ++k) {
            const Samples<A> at = lane.sampler->set(j * s.K + k, tiles.largest);
            lane.sampler->locate_tap(at, n, j, k, p0, count);
            if (want_weight) maps.gather(lane.columns, n, j, k - k0, at, count);
            if (!want_offset && !want_mask) continue;
            maps.dots(lane.dots, columns_grad, n, j, k - k0, at, count);
            const auto& d = lane.dots;
            const auto& w = at.weight;
            const int64_t channel = j * s.K + k;
            if (want_mask) {
              for (int64_t i = 0; i < count; ++i)
                lane.row[i] = w[0][i] * d[0][i] + w[1][i] * d[1][i] + w[2][i] * d[2][i] + w[3][i] * d[3][i];
              write(grad_mask, n, channel, p0, lane.row, count);
            }
            if (want_offset) {
              for (int64_t i = 0; i < count; ++i)
                lane.row[i] = at.mask[i] * ((1 - at.fx[i]) * (d[2][i] - d[0][i]) + at.fx[i] * (d[3][i] - d[1][i]));
              write(grad_offset, n, 2 * channel, p0, lane.row, count);
              for (int64_t i = 0; i < count; ++i)
                lane.row[i] = at.mask[i] * ((1 - at.fy[i]) * (d[1][i] - d[0][i]) + at.fy[i] * (d[3][i] - d[2][i]));
              write(grad_offset, n, 2 * channel + 1, p0, lane.row, count);
            }
          }

        if constexpr (std::is_same_v<V, A>)
          if (want_weight && s.depthwise) collect(lane.weight, rows, rows_stride, lane.columns, s.K, s.C, count);
        for (int64_t q = 0; q < s.g && want_turned; ++q) {
          A* const sums = lane.weight + q * s.Og * KCg + k0 * s.Cg;
          const V *const left = turned + q * s.Og * turned_stride, *const columns = lane.columns + q * taps * s.Cg;
          if constexpr (std::is_same_v<V, A>) {
            if (!ours && !mm<V>({sums, s.Og, width, KCg, 1}, {left, s.Og, count, turned_stride, 1},
                                {columns, count, width, pitch, 1}, true))
              ok = false;
            for (int64_t c = 0; ours && c < width; c += kPanel) {
              const int64_t some = std::min(kPanel, width - c);
              pack(lane.panel, columns + c, pitch, 1, count, some);
              multiply(sums + c, KCg, sums + c, KCg, left, turned_stride, lane.panel, s.Og, count, some);
            }
          } else {
            // Tiles are added up in float.
            if (!mm<V>({lane.product, s.Og, width, width, 1}, {left, s.Og, count, turned_stride, 1},
                       {columns, count, width, pitch, 1}))
              ok = false;
            for (int64_t o = 0; o < s.Og; ++o) add(sums + o * KCg, lane.product + o * width, width);
          }
        }
      }
    };

    // Scatter a tile's columns, channels [c0, c1) only: threads split channels, and every sum keeps its order.
    auto scatter_tile = [&](const Lane& lane, int64_t c0, int64_t c1) {
      const int64_t n = tiles.image(lane.tile), count = tiles.size(lane.tile);
      for (int64_t j = 0; j < s.G; ++j)
        for (int64_t k = 0; k < s.K; ++k)
          sums->scatter(lane.columns_grad + k / taps * tiles.largest * pitch, pitch, n, maps.parts(j), k % taps,
                        lane.sampler->set(j * s.K + k, tiles.largest), c0, c1, count);
    };

    for (int64_t n = 0; n < s.N; n += s.together()) {
      const int64_t images = std::min(s.together(), s.N - n), end = (n + images) * tiles.per_image;
      maps.read(n, images);
      if (want_input) sums->begin(n, images);
      for (int64_t round = n * tiles.per_image; round < end; round += lanes) {
        const int64_t active = std::min(lanes, end - round);
        parallel_products(active, [&](int64_t i) { own[i].tile = round + i, compute(own[i]); });
        if (!want_input) continue;
        const int64_t slices = std::min<int64_t>(lanes, (s.C + 15) / 16);
        parallel(slices, 1, [&](int64_t begin, int64_t stop) {
          const int64_t c0 = s.C * begin / slices / 16 * 16, c1 = stop == slices ? s.C : s.C * stop / slices / 16 * 16;
          for (int64_t i = 0; i < active; ++i) scatter_tile(own[i], c0, c1);
        });
      }
      if (want_input) sums->template write<T>();
    }

    if (want_weight) {
      T* to = static_cast<T*>(grad_weight.mutable_data_ptr());
      parallel(s.O, 8, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o)
          for (int64_t c = 0; c < s.Cg; ++c)
            for (int64_t k = 0; k < s.K; ++k) {
              A total = 0;
              for (const auto& lane : own) total += lane.weight[s.depthwise ? k * s.C + o : (o * s.K + k) * s.Cg + c];
              to[(o * s.Cg + c) * s.K + k] = T(total);
            }
      });
    }
  };
  by_products(input.scalar_type(), s.depthwise, run);
  STD_TORCH_CHECK(ok, "deform_conv2d: a matrix product failed");
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv2d_backward", TORCH_BOX(&pliant::deform_conv2d_backward));
}
