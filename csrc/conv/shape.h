// Sizes of a deformable convolution, and whether its tensors fit each other.
//
// Maps of one, two and three axes are one thing inside: a map of rows. A line is one row, and the planes of a volume
// lie one after another, so that every tensor becomes (N, C, rows, W) without a copy (`rows`). What is left of the axes
// is where taps sample, and how many coordinates an offset has.
#pragma once

#include <array>

#include "../abi.h"
#include "../maps/frame.h"

namespace pliant {

using Sizes = std::vector<int64_t>;

inline Sizes sizes(const Tensor& t) {
  Sizes found(t.dim());
  for (int64_t d = 0; d < t.dim(); ++d) found[d] = t.size(d);
  return found;
}

// A tensor of one to three spatial axes as (N, C, rows, W): a view where its memory allows it.
inline Tensor rows(const Tensor& t) {
  if (t.dim() == 4) return t;
  return torch::stable::reshape(t,
                                {t.size(0), t.size(1), t.dim() == 3 ? 1 : t.size(2) * t.size(3), t.size(t.dim() - 1)});
}
inline std::optional<Tensor> rows(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(rows(*t)) : std::nullopt;
}

// Sides of maps, strides and the like are below this, so that products of two are far from overflow.
inline constexpr int64_t kMost = int64_t(1) << 31;

// The grid of positions, as the operators receive it: one number per axis, in the order z, y, x. Axes that a map does
// not have, come first and have stride 1, padding 0, dilation 1.
struct ConvGeometry {
  int64_t axes;
  std::array<int64_t, 3> stride, padding, dilation;
  bool clamp;  // boundary "clamp", else "zeros"

  ConvGeometry(int64_t axes, const Sizes& stride, const Sizes& padding, const Sizes& dilation, bool clamp,
               const char* op)
      : axes(axes),
        stride(last(stride, axes, 1, op, "stride")),
        padding(last(padding, axes, 0, op, "padding")),
        dilation(last(dilation, axes, 1, op, "dilation")),
        clamp(clamp) {}

 private:
  // The numbers of all three axes; none may be less than the one of an axis that a map does not have.
  static std::array<int64_t, 3> last(const Sizes& list, int64_t axes, int64_t fill, const char* op,
                                     const char* argument) {
    auto fits = [&](int64_t n) { return n >= fill && n < kMost; };
    require_fit(int64_t(list.size()) == axes && std::all_of(list.begin(), list.end(), fits), op, argument);
    std::array<int64_t, 3> found{fill, fill, fill};
    std::copy(list.begin(), list.end(), found.end() - axes);
    return found;
  }
};

// The size of a tensor (·, ·, spatial …) along axis 0 (z), 1 (y) or 2 (x); 1 along axes that it does not have.
inline int64_t along(const Sizes& size, int64_t axis) {
  const int64_t d = int64_t(size.size()) - 3 + axis;
  return d < 2 ? 1 : size[d];
}

// The size of the grid of positions that a kernel has on a map: N, 0 and a number per axis. Refuses a map and a weight
// that have none.
inline Sizes positions_on(const Sizes& map, const Sizes& weight, const ConvGeometry& geometry, const char* op) {
  require_fit(int64_t(map.size()) == 2 + geometry.axes, op, "input");
  require_fit(weight.size() == map.size(), op, "weight");
  Sizes found{map[0], 0};
  for (int64_t i = 3 - geometry.axes; i < 3; ++i) {
    const int64_t size = along(map, i), kernel = along(weight, i);
    require_fit(size > 0 && size < kMost, op, "input");
    require_fit(kernel > 0 && kernel < kMost, op, "weight");
    const int64_t room = size + 2 * geometry.padding[i] - geometry.dilation[i] * (kernel - 1) - 1;
    require_fit(room >= 0, op, "weight");
    found.push_back(room / geometry.stride[i] + 1);
  }
  return found;
}

// Refuse tensors that do not fit a map of the sizes `map` and the type `type`, with that grid of positions. The map and
// the weight have the same number of axes.
inline void require_conv(const char* op, ScalarType type, const Sizes& map, const Tensor& offset, const Tensor& weight,
                         const std::optional<Tensor>& mask, const Sizes& positions) {
  const int64_t axes = int64_t(map.size()) - 2, C = map[1], O = weight.size(0), Cg = weight.size(1);
  require_fit(is_floating(type) && C > 0 && could_hold({C, along(map, 0), along(map, 1), along(map, 2)}), op, "input");
  require_fit(weight.scalar_type() == type && O > 0 && Cg > 0 && C % Cg == 0 && O % (C / Cg) == 0, op, "weight");
  // An expanded weight may have sizes whose product overflows.
  int64_t K = 1;
  for (int64_t d = 2; d < weight.dim(); ++d) {
    require_fit(weight.size(d) > 0 && weight.size(d) < kMost, op, "weight");
    K *= weight.size(d);
    require_fit(K < kMost, op, "weight");
  }
  require_fit(could_hold({O, Cg, K}), op, "weight");
  require_fit(accompanies(offset, type) && offset.dim() == weight.dim(), op, "offset");
  const int64_t G = std::max<int64_t>(offset.size(1) / (axes * K), 1);
  Sizes moved = positions, masked = positions;
  require_fit(could_hold({axes * K, G, along(positions, 0), along(positions, 1), along(positions, 2)}), op, "offset");
  moved[1] = axes * G * K, masked[1] = G * K;
  require_fit(C % G == 0 && sizes(offset) == moved, op, "offset");
  require_fit(!mask || (accompanies(*mask, type) && sizes(*mask) == masked), op, "mask");
}

struct ConvShape {
  ConvGeometry geometry;
  int64_t N, C, D, H, W, O, Cg, Kh, Kw, Ho, Wo;
  int64_t K, P, G, g, Og;  // taps, positions, offset groups, convolution groups, filters per convolution group
  int64_t pixels;          // of a map
  bool volume;             // a sample reads two planes
  bool depthwise;          // one filter per channel
  bool framed;             // maps are kept in a Frame: few channels, all of one group

  // Sizes of what fits each other.
  ConvShape(const Sizes& map, const Sizes& offset, const Sizes& weight, const ConvGeometry& geometry)
      : geometry(geometry),
        N(map[0]),
        C(map[1]),
        D(along(map, 0)),
        H(along(map, 1)),
        W(along(map, 2)),
        O(weight[0]),
        Cg(weight[1]),
        Kh(along(weight, 1)),
        Kw(along(weight, 2)),
        Ho(along(offset, 1)),
        Wo(along(offset, 2)),
        K(along(weight, 0) * Kh * Kw),
        P(along(offset, 0) * Ho * Wo),
        G(offset[1] / (geometry.axes * K)),
        g(C / Cg),
        Og(O / g),
        pixels(D * H * W),
        volume(geometry.axes == 3),
        depthwise(Cg == 1 && Og == 1 && g > 1),
        framed(C <= kPixel && G == 1 && g == 1 && !volume) {}

  // The sizes that depend on the weight of a convolution over two axes alone; the others are 0.
  ConvShape(const Sizes& weight, int64_t groups)
      : ConvShape({0, groups * weight[1], 0, 0}, {0, 2 * weight[2] * weight[3], 0, 0}, weight,
                  ConvGeometry(2, {1, 1}, {0, 0}, {1, 1}, false, "deform_conv2d")) {
    framed = false;
  }

  // Images that are converted at a time: the copies stay in cache, and a batch needs no more memory than a few images.
  int64_t together() const { return std::clamp<int64_t>((8 << 20) / (C * pixels * 4), 1, std::max<int64_t>(N, 1)); }
};

}  // namespace pliant
