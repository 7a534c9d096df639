// Deformable convolution of lines, maps and volumes: the operators, which check their arguments and run the passes.
#include "../maps/write.h"
#include "passes.h"

namespace pliant {
namespace {

Tensor forward(int64_t axes, const char* op, const Tensor& input, const Tensor& offset, const Tensor& weight,
               const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
               const std::optional<Tensor>& mask, bool clamp, const Tensor* packed = nullptr) {
  const ConvGeometry geometry(axes, stride, padding, dilation, clamp, op);
  const Sizes positions = positions_on(sizes(input), sizes(weight), geometry, op);
  require_conv(op, input.scalar_type(), sizes(input), offset, weight, mask, positions);
  const ConvShape s(sizes(input), sizes(offset), sizes(weight), geometry);
  require_fit(!bias || (bias->scalar_type() == input.scalar_type() && has_shape(*bias, {s.O})), op, "bias");
  const bool last = channels_last(input);
  Sizes size = positions;
  size[1] = s.O;
  Tensor output = empty_map(input, size, last);
  const bool ok = convolve(rows(input), rows(offset), rows(weight), bias, rows(mask), s, output, last, packed);
  STD_TORCH_CHECK(ok, op, ": a matrix product failed");
  return output;
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four backward(int64_t axes, const char* op, const Tensor& grad, const Tensor& input, const Tensor& offset,
              const Tensor& weight, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
              const std::optional<Tensor>& mask, bool clamp, int64_t wanted) {
  const ConvGeometry geometry(axes, stride, padding, dilation, clamp, op);
  Sizes positions = positions_on(sizes(input), sizes(weight), geometry, op);
  require_conv(op, input.scalar_type(), sizes(input), offset, weight, mask, positions);
  const ConvShape s(sizes(input), sizes(offset), sizes(weight), geometry);
  positions[1] = s.O;
  require_fit(grad.scalar_type() == input.scalar_type() && sizes(grad) == positions, op, "grad");
  const bool last = channels_last(input), want_input = wanted & 1, want_offset = wanted & 2, want_weight = wanted & 4,
             want_mask = mask && (wanted & 8);
  Gradients out{want_input,
                want_offset,
                want_weight,
                want_mask,
                gradient_map(want_input, input, last, input),
                gradient_map(want_offset, offset, false, input),
                gradient_map(want_weight, weight, false, input),
                gradient_map(want_mask, mask ? *mask : offset, false, input),
                last};
  const bool ok = differentiate(rows(grad), rows(input), rows(offset), rows(weight), rows(mask), s, out);
  STD_TORCH_CHECK(ok, op, ": a matrix product failed");
  return {out.input, out.offset, out.weight, out.mask};
}

// The operators of the schemas that Python defines, which differ in their number of axes.
#define PLIANT_DEFORM_CONV(NAME, AXES)                                                                             \
  Tensor NAME(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,  \
              const Sizes& stride, const Sizes& padding, const Sizes& dilation, const std::optional<Tensor>& mask, \
              bool clamp) {                                                                                        \
    return forward(AXES, #NAME, input, offset, weight, bias, stride, padding, dilation, mask, clamp);              \
  }                                                                                                                \
  Four NAME##_backward(const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,        \
                       const Sizes& stride, const Sizes& padding, const Sizes& dilation,                           \
                       const std::optional<Tensor>& mask, bool clamp, int64_t wanted) {                            \
    return backward(AXES, #NAME, grad, input, offset, weight, stride, padding, dilation, mask, clamp, wanted);     \
  }
PLIANT_DEFORM_CONV(deform_conv1d, 1)
PLIANT_DEFORM_CONV(deform_conv2d, 2)
PLIANT_DEFORM_CONV(deform_conv3d, 3)

// deform_conv2d with the weight packed by deform_conv2d_pack.
Tensor deform_conv2d_packed(const Tensor& input, const Tensor& offset, const Tensor& weight,
                            const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding,
                            const Sizes& dilation, const std::optional<Tensor>& mask, bool clamp,
                            const Tensor& packed) {
  return forward(2, "deform_conv2d", input, offset, weight, bias, stride, padding, dilation, mask, clamp, &packed);
}

Tensor deform_conv2d_pack(const Tensor& weight, int64_t groups) {
  constexpr const char* kOp = "deform_conv2d_pack";
  require_fit(is_floating(weight) && weight.dim() == 4 && weight.numel() > 0, kOp, "weight");
  require_fit(groups > 0 && weight.size(0) % groups == 0, kOp, "groups");
  return pack(weight, ConvShape(sizes(weight), groups));
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_conv1d", TORCH_BOX(&pliant::deform_conv1d));
  m.impl("deform_conv1d_backward", TORCH_BOX(&pliant::deform_conv1d_backward));
  m.impl("deform_conv2d", TORCH_BOX(&pliant::deform_conv2d));
  m.impl("deform_conv2d_packed", TORCH_BOX(&pliant::deform_conv2d_packed));
  m.impl("deform_conv2d_pack", TORCH_BOX(&pliant::deform_conv2d_pack));
  m.impl("deform_conv2d_backward", TORCH_BOX(&pliant::deform_conv2d_backward));
  m.impl("deform_conv3d", TORCH_BOX(&pliant::deform_conv3d));
  m.impl("deform_conv3d_backward", TORCH_BOX(&pliant::deform_conv3d_backward));
}
