// Transposed deformable convolution, the adjoint of deform_conv2d in its input. With `map` the larger map, on which
// samples lie: the output is what deform_conv2d's backward pass calls the gradient of its input, the gradient of the
// input is deform_conv2d of the output's gradient, and all other gradients are those of that convolution.
#include "../maps/write.h"
#include "passes.h"

namespace pliant {
namespace {

constexpr const char* kOp = "deform_conv_transpose2d";

// The sizes of the output, without its channels. Refuses arguments that have none.
Sizes map_of(const Tensor& input, const Tensor& weight, const Sizes& output_padding, const ConvGeometry& geometry) {
  require_fit(input.dim() == 4, kOp, "input");
  require_fit(weight.dim() == 4 && weight.size(0) == input.size(1) && weight.size(1) > 0 && weight.size(1) < kMost, kOp,
              "weight");
  require_fit(output_padding.size() == 2, kOp, "output_padding");
  Sizes found{input.size(0), 0};
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t n = input.size(2 + i), k = weight.size(2 + i), s = geometry.stride[1 + i],
                  d = geometry.dilation[1 + i], more = output_padding[i];
    require_fit(n > 0 && n < kMost, kOp, "input");
    require_fit(k > 0 && k < kMost, kOp, "weight");
    require_fit(more >= 0 && more < std::max(s, d), kOp, "output_padding");
    found.push_back((n - 1) * s - 2 * geometry.padding[1 + i] + d * (k - 1) + 1 + more);
    require_fit(found.back() > 0, kOp, "padding");
    require_fit(found.back() < kMost, kOp, "input");
  }
  return found;
}

// The shape of the convolution that this is the adjoint of, checked.
ConvShape shape_of(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                   int64_t groups, const Sizes& output_padding, const ConvGeometry& geometry, Sizes& map) {
  map = map_of(input, weight, output_padding, geometry);
  require_fit(groups > 0 && groups < kMost && input.size(1) % groups == 0, kOp, "groups");
  map[1] = weight.size(1) * groups;
  require_conv(kOp, input.scalar_type(), map, offset, weight, mask, sizes(input));
  return ConvShape(map, sizes(offset), sizes(weight), geometry);
}

Tensor deform_conv_transpose2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding,
                               const Sizes& output_padding, const Sizes& dilation, const std::optional<Tensor>& mask,
                               int64_t groups, bool clamp) {
  const ConvGeometry geometry(2, stride, padding, dilation, clamp, kOp);
  Sizes map;
  const ConvShape s = shape_of(input, offset, weight, mask, groups, output_padding, geometry, map);
  require_fit(!bias || (bias->scalar_type() == input.scalar_type() && has_shape(*bias, {s.C})), kOp, "bias");
  const bool last = channels_last(input);
  const Tensor none = torch::stable::new_empty(input, {0});
  Gradients out{true, false, false, false, empty_map(input, map, last), none, none, none, last, true, bias};
  STD_TORCH_CHECK(differentiate(input, out.input, offset, weight, mask, s, out), kOp, ": a matrix product failed");
  return out.input;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv_transpose2d_backward(
    const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight, const Sizes& stride,
    const Sizes& padding, const Sizes& output_padding, const Sizes& dilation, const std::optional<Tensor>& mask,
    int64_t groups, bool clamp, int64_t wanted) {
  const ConvGeometry geometry(2, stride, padding, dilation, clamp, kOp);
  Sizes map;
  const ConvShape s = shape_of(input, offset, weight, mask, groups, output_padding, geometry, map);
  require_fit(grad.scalar_type() == input.scalar_type() && sizes(grad) == map, kOp, "grad");
  const bool last = channels_last(input), want_input = wanted & 1, want_offset = wanted & 2, want_weight = wanted & 4,
             want_mask = mask && (wanted & 8);
  Tensor grad_input = gradient_map(want_input, input, last, input);
  Gradients out{false,
                want_offset,
                want_weight,
                want_mask,
                torch::stable::new_empty(input, {0}),
                gradient_map(want_offset, offset, false, input),
                gradient_map(want_weight, weight, false, input),
                gradient_map(want_mask, mask ? *mask : offset, false, input)};
  bool ok = !want_input || convolve(grad, offset, weight, std::nullopt, mask, s, grad_input, last);
  if (want_offset || want_weight || want_mask) ok &= differentiate(input, grad, offset, weight, mask, s, out);
  STD_TORCH_CHECK(ok, kOp, ": a matrix product failed");
  return {grad_input, out.offset, out.weight, out.mask};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv_transpose2d", TORCH_BOX(&pliant::deform_conv_transpose2d));
  m.impl("deform_conv_transpose2d_backward", TORCH_BOX(&pliant::deform_conv_transpose2d_backward));
}
