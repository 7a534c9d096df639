// Sizes of a deformable convolution, and whether its tensors fit each other.
#pragma once

#include <array>

#include "../abi.h"
#include "../maps/frame.h"

namespace pliant {

// The grid of positions, as the operators receive it; pairs are (vertical, horizontal).
struct ConvGeometry {
  std::array<int64_t, 2> stride, padding, dilation;
  bool clamp;  // boundary "clamp", else "zeros"

  ConvGeometry(const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation, bool clamp)
      : stride(numbers<2>(stride, "deform_conv2d")),
        padding(numbers<2>(padding, "deform_conv2d")),
        dilation(numbers<2>(dilation, "deform_conv2d")),
        clamp(clamp) {}
};

// Whether the tensors of deform_conv2d fit each other.
inline bool conv_fits(const Tensor& input, const Tensor& offset, const Tensor& weight,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                      const ConvGeometry& geometry) {
  const ScalarType type = input.scalar_type();
  if (!is_floating(type) || weight.scalar_type() != type || !accompanies(offset, type)) return false;
  if ((mask && !accompanies(*mask, type)) || (bias && bias->scalar_type() != type)) return false;
  if (input.dim() != 4 || weight.dim() != 4 || offset.dim() != 4) return false;
  constexpr int64_t kMost = int64_t(1) << 31;
  const int64_t N = input.size(0), C = input.size(1), O = weight.size(0), Cg = weight.size(1);
  if (O <= 0 || Cg <= 0 || C <= 0 || C % Cg != 0 || O % (C / Cg) != 0) return false;
  // An expanded weight may have sizes whose product overflows.
  for (int64_t n : {weight.size(2), weight.size(3)})
    if (n <= 0 || n >= kMost) return false;
  const int64_t K = weight.size(2) * weight.size(3);
  if (K >= kMost) return false;
  int64_t out[2];
  for (int i : {0, 1}) {
    const int64_t size = input.size(2 + i), stride = geometry.stride[i], padding = geometry.padding[i],
                  dilation = geometry.dilation[i];
    for (int64_t n : {size, stride, dilation})
      if (n <= 0 || n >= kMost) return false;
    if (padding < 0 || padding >= kMost) return false;
    const int64_t room = size + 2 * padding - dilation * (weight.size(2 + i) - 1) - 1;
    if (room < 0) return false;
    out[i] = room / stride + 1;
  }
  const int64_t G = std::max<int64_t>(offset.size(1) / (2 * K), 1);
  return C % G == 0 && has_shape(offset, {N, 2 * G * K, out[0], out[1]}) &&
         (!mask || has_shape(*mask, {N, G * K, out[0], out[1]})) && (!bias || has_shape(*bias, {O}));
}

struct ConvShape {
  ConvGeometry geometry;
  int64_t N, C, H, W, O, Cg, Kh, Kw, Ho, Wo;
  int64_t K, P, G, g, Og;  // taps, positions, offset groups, convolution groups, filters per convolution group
  bool depthwise;          // one filter per channel
  bool framed;             // maps are kept in a Frame: few channels, all of one group

  // Sizes of tensors that fit each other.
  ConvShape(const Tensor& input, const Tensor& offset, const Tensor& weight, const ConvGeometry& geometry)
      : geometry(geometry),
        N(input.size(0)),
        C(input.size(1)),
        H(input.size(2)),
        W(input.size(3)),
        O(weight.size(0)),
        Cg(weight.size(1)),
        Kh(weight.size(2)),
        Kw(weight.size(3)),
        Ho(offset.size(2)),
        Wo(offset.size(3)),
        K(Kh * Kw),
        P(Ho * Wo),
        G(offset.size(1) / (2 * K)),
        g(C / Cg),
        Og(O / g),
        depthwise(Cg == 1 && Og == 1 && g > 1),
        framed(C <= kPixel && G == 1 && g == 1) {}

  // The sizes that depend on the weight alone; the others are 0.
  ConvShape(const Tensor& weight, int64_t groups)
      : geometry({1, 1}, {0, 0}, {1, 1}, false),
        N(0),
        C(groups * weight.size(1)),
        H(0),
        W(0),
        O(weight.size(0)),
        Cg(weight.size(1)),
        Kh(weight.size(2)),
        Kw(weight.size(3)),
        Ho(0),
        Wo(0),
        K(Kh * Kw),
        P(0),
        G(1),
        g(groups),
        Og(O / g),
        depthwise(Cg == 1 && Og == 1 && g > 1),
        framed(false) {}

  // Images that are converted at a time: the copies stay in cache, and a batch needs no more memory than a few images.
  int64_t together() const { return std::clamp<int64_t>((8 << 20) / (C * H * W * 4), 1, std::max<int64_t>(N, 1)); }
};

}  // namespace pliant
