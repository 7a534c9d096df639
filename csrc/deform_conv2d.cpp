// Deformable convolution on the CPU: tiles of output positions, gathered into columns that stay in cache, then one
// matrix product a tile. Backward walks the same tiles. Maps are channels-last inside, everything is float (or double).
#include "aten.h"
#include "sampling.h"

#include <array>
#include <atomic>
#include <memory>

namespace pliant {
namespace {

using torch::stable::new_empty;

struct Shape {
  int64_t N, C, H, W, O, Cg, Kh, Kw, Ho, Wo, sh, sw, ph, pw, dh, dw;
  bool clamp;
  int64_t K, P, G, g, Og;
  bool depthwise;

  Shape(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::array<int64_t, 6>& geometry, bool clamp)
      : N(input.size(0)), C(input.size(1)), H(input.size(2)), W(input.size(3)), O(weight.size(0)), Cg(weight.size(1)),
        Kh(weight.size(2)), Kw(weight.size(3)), Ho(offset.size(2)), Wo(offset.size(3)), sh(geometry[0]), sw(geometry[1]),
        ph(geometry[2]), pw(geometry[3]), dh(geometry[4]), dw(geometry[5]), clamp(clamp), K(Kh * Kw), P(Ho * Wo),
        G(offset.size(1) / (2 * K)), g(C / Cg), Og(O / g), depthwise(Cg == 1 && Og == 1 && g > 1) {}
};

// Channels with one offset group and one convolution group. Tap k of channel c0 stands at column `first + k·step`:
// group by group, tap-major inside, so that each group is one matrix; depthwise needs none and stays tap-major.
struct Segment {
  int64_t group, c0, size, first, step;
};

std::vector<Segment> segments(const Shape& s) {
  std::vector<Segment> found;
  const int64_t per_offset = s.C / s.G, per_conv = s.depthwise ? s.C : s.Cg;
  for (int64_t c0 = 0; c0 < s.C;) {
    const int64_t end = std::min((c0 / per_offset + 1) * per_offset, (c0 / per_conv + 1) * per_conv);
    const int64_t first = c0 / per_conv * per_conv * s.K + c0 % per_conv;
    found.push_back({c0 / per_offset, c0, end - c0, first, per_conv});
    c0 = end;
  }
  return found;
}

// Tiles never cross an image and depend on its shape alone, so a batch computes what its images compute one by one.
// A tile's columns take at most 3 MiB, of which the product's cost per call wants as much as it can get; with several
// threads there are as many tiles an image as threads, or a multiple.
struct Tiles {
  int64_t P, per_image, count, largest;

  Tiles(const Shape& s, int64_t bytes) : P(s.P) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t target = std::clamp<int64_t>((int64_t(3) << 20) / (s.K * s.C * bytes), 16, 256);
    per_image = (P + target - 1) / target;
    per_image = std::min((per_image + threads - 1) / threads * threads, std::max<int64_t>(P / 48, per_image));
    count = s.N * per_image;
    largest = (P + per_image - 1) / per_image;
  }
  int64_t image(int64_t tile) const { return tile / per_image; }
  int64_t begin(int64_t tile) const { return P * (tile % per_image) / per_image; }
  int64_t size(int64_t tile) const { return P * (tile % per_image + 1) / per_image - begin(tile); }
};

// Aligned pieces of one allocation: made before the parallel loop, which must not throw.
class Arena {
 public:
  template <class T>
  void reserve(T*& piece, int64_t count) {
    pieces_.push_back({reinterpret_cast<void**>(&piece), bytes_});
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
  }
  void allocate() {
    memory_.reset(new char[bytes_ + 64]);
    char* start = memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64);
    for (auto& [piece, at] : pieces_) *piece = start + at;
  }

 private:
  std::vector<std::pair<void**, size_t>> pieces_;
  size_t bytes_ = 0;
  std::unique_ptr<char[]> memory_;
};

// Four-dimensional memory of any of the dtypes with any strides; planes of offsets, masks, maps.
struct Planes {
  const void* data;
  ScalarType type;
  int64_t n, c, h, w;

  explicit Planes(const Tensor& t)
      : data(t.const_data_ptr()), type(t.scalar_type()), n(t.stride(0)), c(t.stride(1)), h(t.stride(2)), w(t.stride(3)) {}

  // out[i·step] = value at row-major position `begin + i` of plane (image, channel).
  template <class A>
  void read(int64_t image, int64_t channel, int64_t width, int64_t begin, int64_t count, A* out, int64_t step = 1) const {
    dispatch(type, [&](auto zero) {
      const auto* plane = static_cast<const decltype(zero)*>(data) + image * n + channel * c;
      if (h == width * w) {
        for (int64_t i = 0; i < count; ++i) out[i * step] = A(plane[(begin + i) * w]);
      } else {
        for (int64_t i = 0; i < count; ++i) out[i * step] = A(plane[(begin + i) / width * h + (begin + i) % width * w]);
      }
    });
  }
};

// The kernels of one tap, once per instruction level.
PLIANT_CLONES void locate(const Samples<float>& o, const float* y, const float* x, int64_t n, int32_t H, int32_t W, bool clamp) {
  locate_impl(o, y, x, n, H, W, clamp);
}
PLIANT_CLONES void locate(const Samples<double>& o, const double* y, const double* x, int64_t n, int32_t H, int32_t W, bool clamp) {
  locate_impl(o, y, x, n, H, W, clamp);
}
PLIANT_CLONES void gather(float* o, int64_t s, const Samples<float>& at, const float* x, const float* z, int64_t C, int64_t n, int64_t p) {
  gather_impl(o, s, at, x, z, C, n, p);
}
PLIANT_CLONES void gather(double* o, int64_t s, const Samples<double>& at, const double* x, const double* z, int64_t C, int64_t n, int64_t p) {
  gather_impl(o, s, at, x, z, C, n, p);
}
PLIANT_CLONES void dots(float (*d)[4], const float* g, int64_t s, const Samples<float>& at, const float* x, const float* z, int64_t C, int64_t n, int64_t p) {
  dots_impl(d, g, s, at, x, z, C, n, p);
}
PLIANT_CLONES void dots(double (*d)[4], const double* g, int64_t s, const Samples<double>& at, const double* x, const double* z, int64_t C, int64_t n, int64_t p) {
  dots_impl(d, g, s, at, x, z, C, n, p);
}
PLIANT_CLONES void scatter(float* o, const float* g, int64_t s, const Samples<float>& at, int64_t C, int64_t n, int64_t p) {
  scatter_impl(o, g, s, at, C, n, p);
}
PLIANT_CLONES void scatter(double* o, const double* g, int64_t s, const Samples<double>& at, int64_t C, int64_t n, int64_t p) {
  scatter_impl(o, g, s, at, C, n, p);
}

// What torch calls channels_last when it must choose a format for a result.
bool channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * t.size(d);
  }
  return true;
}

Tensor empty_map(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool last) {
  const int64_t sizes[] = {N, C, H, W};
  return torch::stable::empty(
      {sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

constexpr int64_t kBlock = 16;

// out[i][j] = in[j][i] for a block that fits in level-1 cache, `i` rows of `j` written whole.
template <class T, class A>
PLIANT_INLINE void transpose(T* out, int64_t out_stride, const A* in, int64_t in_stride, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[i * out_stride + j] = T(in[j * in_stride + i]);
}

// The map as A, channels-last and dense: the tensor's own memory where it is that already, else one converted copy.
template <class A>
struct Map {
  const A* data;
  std::unique_ptr<A[]> copy;

  Map(const Tensor& t, const Shape& s) {
    const bool dense = t.stride(1) == 1 && t.stride(3) == s.C && t.stride(2) == s.W * s.C && t.stride(0) == s.H * s.W * s.C;
    if (dense && int32_t(t.scalar_type()) == kScalarType<A>) {
      data = static_cast<const A*>(t.const_data_ptr());
      return;
    }
    copy.reset(new A[s.N * s.H * s.W * s.C]);
    data = copy.get();
    const Planes planes(t);
    const int64_t HW = s.H * s.W, blocks = (HW + kBlock - 1) / kBlock;
    parallel(s.N * blocks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / blocks, p = i % blocks * kBlock, count = std::min(kBlock, HW - p);
        A block[kBlock * kBlock];
        for (int64_t c = 0; c < s.C; c += kBlock) {
          const int64_t channels = std::min(kBlock, s.C - c);
          for (int64_t r = 0; r < channels; ++r) planes.read(n, c + r, s.W, p, count, block + r * kBlock);
          transpose(copy.get() + (n * HW + p) * s.C + c, s.C, block, kBlock, count, channels);
        }
      }
    });
  }
};

// The weight as [O][K][C/g], each group one matrix: a channels_last weight is that already. Depthwise as [K][C].
template <class A>
struct Weights {
  const A* data;
  std::unique_ptr<A[]> copy;

  Weights(const Tensor& t, const Shape& s) {
    const Planes from(t);
    if (int32_t(from.type) == kScalarType<A> && !s.depthwise && from.w == s.Cg && from.h == s.Kw * s.Cg &&
        from.n == s.K * s.Cg && (from.c == 1 || s.Cg == 1)) {
      data = static_cast<const A*>(from.data);
      return;
    }
    copy.reset(new A[s.O * s.K * s.Cg]);
    data = copy.get();
    const int64_t so = s.depthwise ? 1 : s.K * s.Cg, sk = s.depthwise ? s.C : s.Cg;
    dispatch(from.type, [&](auto zero) {
      const auto* in = static_cast<const decltype(zero)*>(from.data);
      parallel(s.O, 16, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o)
          for (int64_t k = 0; k < s.K; ++k)
            for (int64_t c = 0; c < s.Cg; ++c)
              copy[o * so + k * sk + c] = A(in[o * from.n + c * from.c + k / s.Kw * from.h + k % s.Kw * from.w]);
      });
    });
  }
};

// Everything one thread needs of its own to sample a tile.
template <class A>
struct Sampler {
  const Shape& s;
  Planes offset;
  std::optional<Planes> mask;
  A *y, *x;
  Samples<A> all;

  // Room for `sets` taps at once: backward keeps all K·G of a tile, forward one.
  Sampler(const Shape& s, const Tensor& offset, const std::optional<Tensor>& mask, Arena& arena, int64_t largest, int64_t sets)
      : s(s), offset(offset) {
    if (mask) this->mask.emplace(*mask);
    arena.reserve(y, largest);
    arena.reserve(x, largest);
    arena.reserve(all.pixel, largest * sets);
    arena.reserve(all.weight, largest * sets);
    arena.reserve(all.fraction, largest * sets);
    arena.reserve(all.mask, largest * sets);
  }

  Samples<A> set(int64_t index, int64_t largest) const {
    const int64_t i = index * largest;
    return {all.pixel + i, all.weight + i, all.fraction + i, all.mask + i};
  }

  // Find the samples of tap k of offset group j for positions [p0, p0 + count) of an image.
  void locate_tap(const Samples<A>& out, int64_t n, int64_t j, int64_t k, int64_t p0, int64_t count) const {
    offset.read(n, (j * s.K + k) * 2, s.Wo, p0, count, y);
    offset.read(n, (j * s.K + k) * 2 + 1, s.Wo, p0, count, x);
    const A dy = A(k / s.Kw * s.dh - s.ph), dx = A(k % s.Kw * s.dw - s.pw);
    for (int64_t i = 0, ho = p0 / s.Wo, wo = p0 % s.Wo; i < count; ++i) {
      y[i] += A(ho * s.sh) + dy;
      x[i] += A(wo * s.sw) + dx;
      if (++wo == s.Wo) wo = 0, ++ho;
    }
    locate(out, y, x, count, int32_t(s.H), int32_t(s.W), s.clamp);
    if (mask)
      mask->read(n, j * s.K + k, s.Wo, p0, count, out.mask);
    else
      std::fill_n(out.mask, count, A(1));
  }
};

Tensor deform_conv2d(
    const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& mask, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw, bool clamp) {
  const Shape s(input, offset, weight, {sh, sw, ph, pw, dh, dw}, clamp);
  const bool last = channels_last(input);
  Tensor output = empty_map(input, s.N, s.O, s.Ho, s.Wo, last);
  if (s.N == 0) return output;
  std::atomic<bool> ok{true};

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> map(input, s);
    const Weights<A> weights(weight, s);
    std::vector<A> biases(s.O), zeros(s.C);
    if (bias) dispatch(bias->scalar_type(), [&](auto z) {
      const auto* b = static_cast<const decltype(z)*>(bias->const_data_ptr());
      for (int64_t o = 0; o < s.O; ++o) biases[o] = A(b[o * bias->stride(0)]);
    });

    const auto parts = segments(s);
    const Tiles tiles(s, sizeof(A));
    const int64_t KC = s.K * s.C, KCg = s.K * s.Cg, lanes = std::min<int64_t>(torch::stable::get_num_threads(), tiles.count);
    // Products are [positions][O]: written where they belong if that is the output's form, else put there afterwards.
    const bool direct = std::is_same_v<T, A> && last && !s.depthwise;
    T* const out = static_cast<T*>(output.mutable_data_ptr());

    struct Lane {
      Arena arena;
      std::unique_ptr<Sampler<A>> sampler;
      A *columns, *result;
    };
    std::vector<Lane> own(lanes);
    for (auto& lane : own) {
      lane.sampler = std::make_unique<Sampler<A>>(s, offset, mask, lane.arena, tiles.largest, 1);
      lane.arena.reserve(lane.columns, tiles.largest * KC);
      lane.arena.reserve(lane.result, direct ? 0 : tiles.largest * s.O);
      lane.arena.allocate();
    }

    auto compute = [&](Lane& lane, int64_t tile) {
      const int64_t n = tiles.image(tile), p0 = tiles.begin(tile), count = tiles.size(tile);
      const Samples<A> at = lane.sampler->set(0, tiles.largest);
      const A* image = map.data + n * s.H * s.W * s.C;
      for (int64_t j = 0; j < s.G; ++j)
        for (int64_t k = 0; k < s.K; ++k) {
          lane.sampler->locate_tap(at, n, j, k, p0, count);
          for (const auto& part : parts)
            if (part.group == j)
              gather(lane.columns + part.first + k * part.step, KC, at, image + part.c0, zeros.data(), s.C, part.size, count);
        }

      T* const first = out + n * s.O * s.P + p0 * (last ? s.O : 1);
      A* const result = direct ? reinterpret_cast<A*>(first) : lane.result;
      if (s.depthwise) {
        for (int64_t p = 0; p < count; ++p) {
          std::copy_n(biases.data(), s.C, result + p * s.C);
          for (int64_t k = 0; k < s.K; ++k)
            for (int64_t c = 0; c < s.C; ++c)
              result[p * s.C + c] += weights.data[k * s.C + c] * lane.columns[p * KC + k * s.C + c];
        }
      } else {
        for (int64_t q = 0; q < s.g; ++q)
          ok = mm<A>({result + q * s.Og, count, s.Og, s.O, 1}, {lane.columns + q * KCg, count, KCg, KC, 1},
                     {weights.data + q * s.Og * KCg, KCg, s.Og, 1, KCg}) && ok;
        if (bias)
          for (int64_t p = 0; p < count; ++p)
            for (int64_t o = 0; o < s.O; ++o) result[p * s.O + o] += biases[o];
      }
      if (direct) return;
      if (last) {
        for (int64_t i = 0; i < count * s.O; ++i) first[i] = T(result[i]);
        return;
      }
      for (int64_t p = 0; p < count; p += kBlock)
        for (int64_t o = 0; o < s.O; o += kBlock)
          transpose(first + o * s.P + p, s.P, result + p * s.O + o, s.O, std::min(kBlock, s.O - o), std::min(kBlock, count - p));
    };
    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t t = tiles.count * i / lanes; t < tiles.count * (i + 1) / lanes; ++t) compute(own[i], t);
    });
  });
  STD_TORCH_CHECK(ok, "deform_conv2d: a matrix product failed");
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
    int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw, bool clamp, int64_t wanted) {
  const Shape s(input, offset, weight, {sh, sw, ph, pw, dh, dw}, clamp);
  const bool want_input = wanted & 1, want_offset = wanted & 2, want_weight = wanted & 4, want_mask = mask && (wanted & 8);
  const bool last = channels_last(input);
  const Tensor none = new_empty(input, {0});
  auto map_or_none = [&](bool want, const Tensor& t, bool format) {
    return want ? empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3), format) : none;
  };
  Tensor grad_input = map_or_none(want_input, input, last);
  Tensor grad_offset = map_or_none(want_offset, offset, false);
  Tensor grad_weight = map_or_none(want_weight, weight, false);
  Tensor grad_mask = map_or_none(want_mask, mask ? *mask : offset, false);
  std::atomic<bool> ok{true};

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    constexpr bool direct = std::is_same_v<T, A>;
    const Map<A> map(input, s);
    const Weights<A> weights(weight, s);
    const std::vector<A> zeros(s.C);
    const Planes grads(grad);
    const auto parts = segments(s);
    const Tiles tiles(s, sizeof(A));
    const int64_t KC = s.K * s.C, KCg = s.K * s.Cg;
    const int64_t lanes = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(tiles.count, 1));
    const bool want_columns_grad = want_input || want_offset || want_mask;
    // The gradient's own memory serves as the matrix where it is dense float, else a converted copy of each tile.
    const bool in_place = direct && grads.h == s.Wo * grads.w && (grads.w == 1 || grads.c == 1);

    // The input's gradient is summed channels-last in A: in the result itself where that is its form.
    std::unique_ptr<A[]> summed;
    A* sums = nullptr;
    const int64_t numel = s.N * s.H * s.W * s.C;
    if (want_input) {
      if (!(direct && last)) summed.reset(new A[numel]);
      sums = summed ? summed.get() : reinterpret_cast<A*>(grad_input.mutable_data_ptr());
      parallel(numel, 1 << 15, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A(0)); });
    }

    struct Lane {
      Arena arena;
      std::unique_ptr<Sampler<A>> sampler;
      A *columns, *columns_grad, *grad, *weight, *row;
      A (*dots)[4];
      int64_t tile;
    };
    std::vector<Lane> own(lanes);
    for (auto& lane : own) {
      lane.sampler = std::make_unique<Sampler<A>>(s, offset, mask, lane.arena, tiles.largest, s.K * s.G);
      lane.arena.reserve(lane.columns, want_weight ? tiles.largest * KC : 0);
      lane.arena.reserve(lane.columns_grad, want_columns_grad ? tiles.largest * KC : 0);
      lane.arena.reserve(lane.grad, in_place ? 0 : tiles.largest * s.O);
      lane.arena.reserve(lane.weight, want_weight ? s.O * KCg : 0);
      lane.arena.reserve(lane.row, tiles.largest);
      lane.arena.reserve(lane.dots, tiles.largest);
      lane.arena.allocate();
      if (want_weight) std::fill_n(lane.weight, s.O * KCg, A(0));
    }

    // Write one plane of a tile's offset or mask gradient, which is dense, in its own dtype.
    auto write = [&](Tensor& t, int64_t n, int64_t channel, int64_t p0, const A* row, int64_t count) {
      dispatch(t.scalar_type(), [&](auto z) {
        using V = decltype(z);
        V* to = static_cast<V*>(t.mutable_data_ptr()) + (n * t.size(1) + channel) * s.P + p0;
        for (int64_t i = 0; i < count; ++i) to[i] = V(row[i]);
      });
    };

    // All of a tile but the scatter, which meets other tiles' pixels.
    auto compute = [&](Lane& lane) {
      const int64_t n = tiles.image(lane.tile), p0 = tiles.begin(lane.tile), count = tiles.size(lane.tile);
      const A* image = map.data + n * s.H * s.W * s.C;
      const A* go = lane.grad;
      int64_t gp = s.O, gc = 1;
      if (in_place) {
        go = static_cast<const A*>(grads.data) + n * grads.n + p0 * grads.w;
        gp = grads.w, gc = grads.c;
      } else {
        for (int64_t o = 0; o < s.O; ++o) grads.read(n, o, s.Wo, p0, count, lane.grad + o, s.O);
      }

      if (want_columns_grad) {
        if (s.depthwise) {
          for (int64_t p = 0; p < count; ++p)
            for (int64_t k = 0; k < s.K; ++k)
              for (int64_t c = 0; c < s.C; ++c)
                lane.columns_grad[p * KC + k * s.C + c] = go[p * gp + c * gc] * weights.data[k * s.C + c];
        } else {
          for (int64_t q = 0; q < s.g; ++q)
            ok = mm<A>({lane.columns_grad + q * KCg, count, KCg, KC, 1}, {go + q * s.Og * gc, count, s.Og, gp, gc},
                       {weights.data + q * s.Og * KCg, s.Og, KCg, KCg, 1}) && ok;
        }
      }

      for (int64_t j = 0; j < s.G; ++j)
        for (int64_t k = 0; k < s.K; ++k) {
          const Samples<A> at = lane.sampler->set(j * s.K + k, tiles.largest);
          lane.sampler->locate_tap(at, n, j, k, p0, count);
          if (want_weight)
            for (const auto& part : parts)
              if (part.group == j)
                gather(lane.columns + part.first + k * part.step, KC, at, image + part.c0, zeros.data(), s.C, part.size, count);
          if (!want_offset && !want_mask) continue;
          std::fill_n(&lane.dots[0][0], count * 4, A(0));
          for (const auto& part : parts)
            if (part.group == j)
              dots(lane.dots, lane.columns_grad + part.first + k * part.step, KC, at, image + part.c0, zeros.data(), s.C, part.size, count);
          const auto* d = lane.dots;
          const int64_t channel = j * s.K + k;
          if (want_mask) {
            for (int64_t i = 0; i < count; ++i) {
              const A* w = at.weight[i];
              lane.row[i] = w[0] * d[i][0] + w[1] * d[i][1] + w[2] * d[i][2] + w[3] * d[i][3];
            }
            write(grad_mask, n, channel, p0, lane.row, count);
          }
          if (want_offset) {
            for (int64_t i = 0; i < count; ++i) {
              const A fx = at.fraction[i][1];
              lane.row[i] = at.mask[i] * ((1 - fx) * (d[i][2] - d[i][0]) + fx * (d[i][3] - d[i][1]));
            }
            write(grad_offset, n, 2 * channel, p0, lane.row, count);
            for (int64_t i = 0; i < count; ++i) {
              const A fy = at.fraction[i][0];
              lane.row[i] = at.mask[i] * ((1 - fy) * (d[i][1] - d[i][0]) + fy * (d[i][3] - d[i][2]));
            }
            write(grad_offset, n, 2 * channel + 1, p0, lane.row, count);
          }
        }

      if (!want_weight) return;
      if (s.depthwise) {
        for (int64_t p = 0; p < count; ++p)
          for (int64_t k = 0; k < s.K; ++k)
            for (int64_t c = 0; c < s.C; ++c)
              lane.weight[k * s.C + c] += go[p * gp + c * gc] * lane.columns[p * KC + k * s.C + c];
      } else {
        for (int64_t q = 0; q < s.g; ++q)
          ok = mm<A>({lane.weight + q * s.Og * KCg, s.Og, KCg, KCg, 1}, {go + q * s.Og * gc, s.Og, count, gc, gp},
                     {lane.columns + q * KCg, count, KCg, KC, 1}, true) && ok;
      }
    };

    // Scatter a tile's columns, channels [c0, c1) only: threads split channels, and every sum keeps its order.
    auto spread = [&](const Lane& lane, int64_t c0, int64_t c1) {
      const int64_t n = tiles.image(lane.tile), count = tiles.size(lane.tile);
      for (const auto& part : parts) {
        const int64_t begin = std::max(part.c0, c0), end = std::min(part.c0 + part.size, c1);
        if (begin >= end) continue;
        for (int64_t k = 0; k < s.K; ++k)
          scatter(sums + n * s.H * s.W * s.C + begin, lane.columns_grad + part.first + (begin - part.c0) + k * part.step, KC,
                  lane.sampler->set(part.group * s.K + k, tiles.largest), s.C, end - begin, count);
      }
    };

    for (int64_t round = 0; round < tiles.count; round += lanes) {
      const int64_t active = std::min(lanes, tiles.count - round);
      parallel(active, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) own[i].tile = round + i, compute(own[i]);
      });
      if (!want_input) continue;
      const int64_t slices = std::min<int64_t>(lanes, (s.C + 15) / 16);
      parallel(slices, 1, [&](int64_t begin, int64_t end) {
        const int64_t c0 = s.C * begin / slices / 16 * 16, c1 = end == slices ? s.C : s.C * end / slices / 16 * 16;
        for (int64_t i = 0; i < active; ++i) spread(own[i], c0, c1);
      });
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
    if (summed) {
      T* to = static_cast<T*>(grad_input.mutable_data_ptr());
      const int64_t HW = s.H * s.W;
      const int64_t blocks = (HW + kBlock - 1) / kBlock;
      parallel(s.N * blocks, 8, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / blocks, p = i % blocks * kBlock, count = std::min(kBlock, HW - p);
          const A* from = summed.get() + (n * HW + p) * s.C;
          if (last) {
            T* row = to + (n * HW + p) * s.C;
            for (int64_t at = 0; at < count * s.C; ++at) row[at] = T(from[at]);
          } else {
            for (int64_t c = 0; c < s.C; c += kBlock)
              transpose(to + (n * s.C + c) * HW + p, HW, from + c, s.C, std::min(kBlock, s.C - c), count);
          }
        }
      });
    }
  });
  STD_TORCH_CHECK(ok, "deform_conv2d: a matrix product failed");
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&pliant::deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&pliant::deform_conv2d_backward));
}
