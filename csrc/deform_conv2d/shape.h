// What forward and backward share: the geometry, the tiles, the weight in the form the kernels want, sampling a tile.
#pragma once

#include <array>
#include <atomic>
#include <initializer_list>

#include "../aten.h"
#include "../framed.h"
#include "../maps.h"
#include "../product.h"
#include "../sampling.h"

namespace pliant {

// Stride, padding and dilation, each vertical first.
using Geometry = std::array<int64_t, 6>;

inline Geometry geometry_of(const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                            const std::vector<int64_t>& dilation) {
  const auto [sh, sw] = numbers<2>(stride);
  const auto [ph, pw] = numbers<2>(padding);
  const auto [dh, dw] = numbers<2>(dilation);
  return {sh, sw, ph, pw, dh, dw};
}

// Raise unless the tensors fit each other: no pixel is read before. The words for it are Python's, which calls first and
// asks afterwards what was wrong.
inline void check(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& mask, const Geometry& geometry) {
  auto fits = [](bool holds) {
    STD_TORCH_CHECK(holds, "deform_conv2d: arguments that do not fit each other; pliant.ops.deform_conv2d says which");
  };
  auto is = [&](const Tensor& t, std::initializer_list<int64_t> sizes) {
    if (t.dim() != int64_t(sizes.size())) return false;
    int64_t d = 0;
    return std::all_of(sizes.begin(), sizes.end(), [&](int64_t n) { return t.size(d++) == n; });
  };
  const ScalarType type = input.scalar_type();
  const bool low = type == ScalarType::BFloat16 || type == ScalarType::Half;
  auto beside = [&](const Tensor& t) { return t.scalar_type() == type || (low && t.scalar_type() == ScalarType::Float); };
  fits(low || type == ScalarType::Float || type == ScalarType::Double);
  fits(beside(offset) && weight.scalar_type() == type && (!mask || beside(*mask)));
  fits(input.dim() == 4 && weight.dim() == 4 && offset.dim() == 4);
  const int64_t N = input.size(0), C = input.size(1), O = weight.size(0), Cg = weight.size(1), Kh = weight.size(2),
                Kw = weight.size(3), K = Kh * Kw;
  fits(O > 0 && Cg > 0 && K > 0 && C > 0 && C % Cg == 0 && O % (C / Cg) == 0);
  int64_t out[2];
  for (int i : {0, 1}) {
    const int64_t size = input.size(2 + i), step = geometry[i], pad = geometry[2 + i], reach = geometry[4 + i];
    constexpr int64_t kMost = int64_t(1) << 31;
    fits(size > 0 && size < kMost && step > 0 && step < kMost && pad >= 0 && pad < kMost && reach > 0 && reach < kMost);
    const int64_t room = size + 2 * pad - reach * (weight.size(2 + i) - 1) - 1;
    fits(room >= 0);
    out[i] = room / step + 1;
  }
  const int64_t G = std::max<int64_t>(offset.size(1) / (2 * K), 1);
  fits(C % G == 0 && is(offset, {N, 2 * G * K, out[0], out[1]}) && (!mask || is(*mask, {N, G * K, out[0], out[1]})));
  fits(!bias || (bias->scalar_type() == type && is(*bias, {O})));
}

struct Shape {
  int64_t N, C, H, W, O, Cg, Kh, Kw, Ho, Wo, sh, sw, ph, pw, dh, dw;
  bool clamp;
  int64_t K, P, G, g, Og;
  bool depthwise;
  bool framed;  // maps are Framed: few channels, all of one group

  Shape(const Tensor& input, const Tensor& offset, const Tensor& weight, const Geometry& geometry,
        bool clamp)
      : N(input.size(0)),
        C(input.size(1)),
        H(input.size(2)),
        W(input.size(3)),
        O(weight.size(0)),
        Cg(weight.size(1)),
        Kh(weight.size(2)),
        Kw(weight.size(3)),
        Ho(offset.size(2)),
        Wo(offset.size(3)),
        sh(geometry[0]),
        sw(geometry[1]),
        ph(geometry[2]),
        pw(geometry[3]),
        dh(geometry[4]),
        dw(geometry[5]),
        clamp(clamp),
        K(Kh * Kw),
        P(Ho * Wo),
        G(offset.size(1) / (2 * K)),
        g(C / Cg),
        Og(O / g),
        depthwise(Cg == 1 && Og == 1 && g > 1),
        framed(C <= kFew && G == 1 && g == 1) {}

  // How many images are converted at a time: copies stay in cache, and a batch needs no more memory than a few images.
  int64_t together() const { return std::clamp<int64_t>((8 << 20) / (C * H * W * 4), 1, std::max<int64_t>(N, 1)); }
};

// Call f with values of the types of maps, sums, and matrices to multiply: bfloat16 where the processor multiplies it.
template <class F>
void by_products(ScalarType type, bool depthwise, F&& f) {
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    if constexpr (std::is_same_v<T, BFloat16>)
      if (bfloat16_products() && !depthwise) return f(zero, A{}, zero);
    f(zero, A{}, A{});
  });
}

// Channels with one offset group and one convolution group. Tap k of channel c0 stands at column `first + k·step`:
// group by group, tap-major inside, so that each group is one matrix; depthwise needs none and stays tap-major.
struct Segment {
  int64_t c0, size, first, step;
};

// The segments of each offset group, in columns of `taps` taps.
inline std::vector<std::vector<Segment>> segments(const Shape& s, int64_t taps) {
  std::vector<std::vector<Segment>> found(s.G);
  const int64_t per_offset = s.C / s.G, per_conv = s.depthwise ? s.C : s.Cg;
  for (int64_t c0 = 0; c0 < s.C;) {
    const int64_t end = std::min((c0 / per_offset + 1) * per_offset, (c0 / per_conv + 1) * per_conv);
    const int64_t first = c0 / per_conv * per_conv * taps + c0 % per_conv;
    found[c0 / per_offset].push_back({c0, end - c0, first, per_conv});
    c0 = end;
  }
  return found;
}

// Some images of the input as kernels read them, and columns of some taps of them: framed, or dense with a row of zeros
// for what is outside. A is the type of sums, M that of dense maps.
template <class A, class M>
class Input {
 public:
  const int64_t pitch;  // from one position's columns to the next one's; framed, there is room for four of the last tap

  Input(const Tensor& input, const Shape& s, int64_t taps)
      : pitch(taps * s.C + (s.framed ? kFew - s.C : 0)),
        s_(s),
        planes_(input),
        parts_(segments(s, taps)),
        zeros_(s.C, M(0.0f)) {
    if (s.framed)
      framed_.emplace(s.together(), s.C, s.H, s.W);
    else
      map_.emplace(input, 1, s.together());
  }

  // From here on images [first, first + count), at most Shape::together.
  void read(int64_t first, int64_t count) {
    first_ = first;
    if (framed_)
      framed_->read(planes_, first, count, s_.clamp);
    else
      map_->read(first, count);
  }

  // The columns of offset group j's samples `at` in image n, tap k of the columns.
  template <class V>
  void gather(V* columns, int64_t n, int64_t j, int64_t k, const Samples<A>& at, int64_t count) const {
    if (framed_) return pliant::gather(columns + k * s_.C, pitch, at, framed_->image(n - first_), framed_->row(), count);
    for (const auto& part : parts_[j])
      pliant::gather(columns + part.first + k * part.step, pitch, at, image(n) + part.c0, zeros_.data(), s_.C,
                     part.size, count);
  }

  // What the columns' gradient makes of the corners there: Σ_c grad·corner_i.
  template <class V>
  void dots(A* const sums[4], const V* grad, int64_t n, int64_t j, int64_t k, const Samples<A>& at,
            int64_t count) const {
    if (framed_)
      return pliant::dots(sums, grad + k * s_.C, pitch, at, framed_->image(n - first_), framed_->row(), s_.C, count);
    for (int i = 0; i < 4; ++i) std::fill_n(sums[i], count, A(0));
    for (const auto& part : parts_[j])
      pliant::dots(sums, grad + part.first + k * part.step, pitch, at, image(n) + part.c0, zeros_.data(), s_.C,
                   part.size, count);
  }

  // The sums of all taps of a depthwise convolution, without columns; `step` and `taps` as of pliant::blend.
  void blend(A* out, int64_t n, int64_t j, const Samples<A>& at, int64_t step, Tap<A, M>* taps, const A* factors,
             const A* bias, int64_t count) const {
    for (const auto& part : parts_[j])
      pliant::blend(out + part.c0, s_.C, at, step, s_.K, taps, factors + part.c0, bias + part.c0, image(n) + part.c0,
                    zeros_.data(), s_.C, part.size, count);
  }

  const std::vector<Segment>& parts(int64_t j) const { return parts_[j]; }

 private:
  const M* image(int64_t n) const { return map_->data + (n - first_) * s_.H * s_.W * s_.C; }

  const Shape& s_;
  Planes planes_;
  int64_t first_ = 0;
  std::vector<std::vector<Segment>> parts_;
  std::vector<M> zeros_;
  std::optional<Map<M>> map_;
  std::optional<Framed<A>> framed_;
};

// Tiles never cross an image and depend on its shape alone, so a batch computes what its images compute one by one.
// With several threads there are as many tiles an image as threads, or a multiple.
struct Tiles {
  int64_t P, blocks, per_image, count, largest;

  // Of as many positions as `bytes` of columns hold, `columns` floats of A a position; whole blocks of rows of a product.
  Tiles(const Shape& s, int64_t bytes, int64_t columns) : P(s.P), blocks((P + kRows - 1) / kRows) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t target = std::clamp<int64_t>(bytes / columns, 18, 384);
    per_image = pieces(P, target);
    per_image = std::min((per_image + threads - 1) / threads * threads, std::max<int64_t>(P / 48, per_image));
    count = s.N * per_image;
    largest = std::min(P, pieces(blocks, per_image) * kRows);
  }
  int64_t image(int64_t tile) const { return tile / per_image; }
  int64_t begin(int64_t tile) const { return blocks * (tile % per_image) / per_image * kRows; }
  int64_t size(int64_t tile) const {
    return std::min(P, blocks * (tile % per_image + 1) / per_image * kRows) - begin(tile);
  }
};

// The weight as [O][K][C/g], each group one matrix: a channels_last weight is that already. Depthwise as [K][C].
template <class A>
class Weights {
 public:
  Weights(const Tensor& t, const Shape& s) : s_(s), from_(t) {
    if (int32_t(from_.type) == kScalarType<A> && !s.depthwise && from_.w == s.Cg && from_.h == s.Kw * s.Cg &&
        from_.n == s.K * s.Cg && (from_.c == 1 || s.Cg == 1))
      data_ = static_cast<const A*>(from_.data);
  }

  // All of it.
  const A* data() {
    if (data_) return data_;
    copy_ = Buffer<A>(s_.O * s_.K * s_.Cg);
    parallel(s_.O, 16, [&](int64_t begin, int64_t end) { order(copy_.get(), 0, begin, end); });
    return data_ = copy_.get();
  }

  // Filters [first, first + count): their memory, or `room` for as many with a copy.
  const A* filters(int64_t first, int64_t count, A* room) const {
    if (data_) return data_ + first * s_.K * s_.Cg;
    order(room, first, first, first + count);
    return room;
  }

 private:
  // Write filters [begin, end) where `to` begins with filter `zero`.
  void order(A* to, int64_t zero, int64_t begin, int64_t end) const {
    const Shape& s = s_;
    const Planes& f = from_;
    const int64_t so = s.depthwise ? 1 : s.K * s.Cg, sk = s.depthwise ? s.C : s.Cg;
    dispatch(f.type, [&](auto element) {
      const auto* in = static_cast<const decltype(element)*>(f.data);
      for (int64_t o = begin; o < end; ++o) {
        A* const filter = to + (o - zero) * so;
        if (!s.depthwise && f.w == 1 && f.h == s.Kw && f.c == s.K) {
          for (int64_t c = 0; c < s.Cg; c += kBlock)
            transpose(filter + c, sk, in + o * f.n + c * s.K, s.K, s.K, std::min(kBlock, s.Cg - c));
          continue;
        }
        for (int64_t k = 0; k < s.K; ++k)
          for (int64_t c = 0; c < s.Cg; ++c)
            filter[k * sk + c] = A(in[o * f.n + c * f.c + k / s.Kw * f.h + k % s.Kw * f.w]);
      }
    });
  }

  const Shape& s_;
  Planes from_;
  const A* data_ = nullptr;
  Buffer<A> copy_;
};

// Everything one thread needs of its own to sample a tile.
template <class A>
struct Sampler {
  const Shape& s;
  Planes offset;
  std::optional<Planes> mask;
  Positions<A> at;
  Samples<A> all;

  // Room for `sets` taps at once: backward keeps all K·G of a tile, forward one.
  Sampler(const Shape& s, const Tensor& offset, const std::optional<Tensor>& mask, Arena& arena, int64_t largest,
          int64_t sets)
      : s(s), offset(offset) {
    if (mask) this->mask.emplace(*mask);
    for (auto* more : {&at.row, &at.column, &at.y, &at.x}) arena.reserve(*more, largest);
    for (auto& pixel : all.pixel) arena.reserve(pixel, s.framed && &pixel != all.pixel ? 0 : largest * sets);
    for (auto& weight : all.weight) arena.reserve(weight, largest * sets);
    for (auto* more : {&all.fy, &all.fx, &all.mask}) arena.reserve(*more, largest * sets);
  }

  Samples<A> set(int64_t index, int64_t largest) const {
    Samples<A> found = all;
    const int64_t i = index * largest;
    for (auto& pixel : found.pixel) pixel += i;
    for (auto& weight : found.weight) weight += i;
    for (auto* more : {&found.fy, &found.fx, &found.mask}) *more += i;
    return found;
  }

  // Begin with positions [p0, p0 + count) of an image.
  void begin_tile(int64_t p0, int64_t count) const {
    for (int64_t i = 0, ho = p0 / s.Wo, wo = p0 % s.Wo; i < count; ++i) {
      at.row[i] = A(ho * s.sh);
      at.column[i] = A(wo * s.sw);
      if (++wo == s.Wo) wo = 0, ++ho;
    }
  }

  // Find the samples of tap k of offset group j there.
  void locate_tap(const Samples<A>& out, int64_t n, int64_t j, int64_t k, int64_t p0, int64_t count) {
    offset.read(n, (j * s.K + k) * 2, s.Wo, p0, count, at.y);
    offset.read(n, (j * s.K + k) * 2 + 1, s.Wo, p0, count, at.x);
    at.dy = A(k / s.Kw * s.dh - s.ph), at.dx = A(k % s.Kw * s.dw - s.pw);
    locate(out, at, count, s.H, s.W, s.clamp, s.framed);
    if (mask)
      mask->read(n, j * s.K + k, s.Wo, p0, count, out.mask);
    else
      std::fill_n(out.mask, count, A(1));
  }
};

}  // namespace pliant
