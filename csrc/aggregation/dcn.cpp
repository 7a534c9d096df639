// DCNv3 and DCNv4, which differ in how offsets and masks are laid out.
#include <tuple>

#include "problem.h"

namespace pliant {
namespace {

// Numbers of a call besides its tensors.
struct Geometry {
  std::array<int64_t, 2> kernel, stride, padding, dilation;
  int64_t groups;
  double scale;
  bool remove_center;
  const char* op;

  int64_t samples() const { return kernel[0] * kernel[1] - remove_center; }
};

Geometry geometry(const char* op, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                  double scale, bool remove_center) {
  return {numbers<2>(kernel, op, "kernel_size"),
          numbers<2>(stride, op, "stride"),
          numbers<2>(padding, op, "padding"),
          numbers<2>(dilation, op, "dilation"),
          groups,
          scale,
          remove_center,
          op};
}

// The problem of a call, without its sources; refuses geometry that does not fit the map. `beside`, the tensor with the
// offsets, is called `name`: it bounds the number of taps before anything is stored for each.
Problem problem(const Geometry& g, const Tensor& input, const Tensor& beside, const char* name) {
  constexpr int64_t kMost = int64_t(1) << 31;
  auto within = [](const std::array<int64_t, 2>& pair, int64_t least) {
    return pair[0] >= least && pair[1] >= least && pair[0] < kMost && pair[1] < kMost;
  };
  auto require = [&](bool fits, const char* argument) { require_fit(fits, g.op, argument); };
  require(is_floating(input) && input.dim() == 4, "input");
  require(beside.dim() == 4, name);
  require(within(g.kernel, 1), "kernel_size");
  require(within(g.stride, 1), "stride");
  require(within(g.padding, 0), "padding");
  require(within(g.dilation, 1), "dilation");
  const int64_t H = input.size(1), W = input.size(2), C = input.size(3), K = g.samples();
  require(C >= 1 && C < kMost && H >= 1 && W >= 1 && H <= INT32_MAX / W && could_hold({H, W, C}), "input");
  require(g.groups >= 1 && C % g.groups == 0, "groups");
  require(K >= 1 && K < kMost && K <= beside.size(3) / g.groups, "kernel_size");
  Problem s{input.size(0), H * W, g.groups, C / g.groups, 0, K};
  int64_t size[2], center[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t window = g.dilation[axis] * (g.kernel[axis] - 1), all = input.size(1 + axis) + 2 * g.padding[axis];
    require(all > window, "kernel_size");
    size[axis] = (all - window - 1) / g.stride[axis] + 1;
    center[axis] = window / 2;
  }
  require(could_hold({size[0], size[1], K, g.groups, 3}), name);
  s.Q = size[0] * size[1];
  s.width = size[1], s.step_x = g.stride[1], s.step_y = g.stride[0];
  for (int64_t i = 0; i < g.kernel[1]; ++i)
    for (int64_t j = 0; j < g.kernel[0]; ++j) {
      if (g.remove_center && i == g.kernel[1] / 2 && j == g.kernel[0] / 2) continue;
      s.start_x.push_back(double(center[1] - g.padding[1]) + g.scale * double(i * g.dilation[1] - center[1]));
      s.start_y.push_back(double(center[0] - g.padding[0]) + g.scale * double(j * g.dilation[0] - center[0]));
    }
  s.scale_x.resize(K, g.scale), s.scale_y.resize(K, g.scale);
  s.rows.resize(K, int32_t(H)), s.columns.resize(K, int32_t(W)), s.first.resize(K, 0);
  return s;
}

// Whether a tensor beside the map holds `channels` numbers per output position.
bool covers(const Tensor& t, const Problem& s, const Tensor& input, int64_t channels) {
  return accompanies(t, input.scalar_type()) && has_shape(t, {s.N, s.Q / s.width, s.width, channels});
}

// Where numbers stand in a contiguous tensor of the same sizes; `data` is set once there is one.
Source source(const Tensor& t, const Problem& s, int64_t head) {
  const int64_t channels = t.size(3);
  return {nullptr, t.scalar_type(), s.Q * channels, channels, head};
}

Tensor forward(const Problem& s, const Tensor& input) {
  Tensor output = in_huge_pages(torch::stable::new_empty(input, {s.N, s.Q / s.width, s.width, s.M * s.D}));
  aggregate_all(s, input, output);
  return output;
}

void require_gradient(const Tensor& grad, const Problem& s, const Tensor& input, const char* op) {
  require_fit(grad.scalar_type() == input.scalar_type() && has_shape(grad, {s.N, s.Q / s.width, s.width, s.M * s.D}),
              op, "grad");
}

// The problem of `dcnv3`; refuses tensors that do not fit.
Problem of_v3(const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& mask) {
  Problem s = problem(g, input, offset, "offset");
  require_fit(covers(offset, s, input, s.M * s.K * 2), g.op, "offset");
  require_fit(covers(mask, s, input, s.M * s.K), g.op, "mask");
  s.places = source(offset, s, s.K * 2);
  s.factors = source(mask, s, s.K);
  return s;
}

Tensor dcnv3(const Tensor& input, const Tensor& offset, const Tensor& mask, const std::vector<int64_t>& kernel,
             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups, double scale, bool remove_center) {
  const Geometry g = geometry("dcnv3", kernel, stride, padding, dilation, groups, scale, remove_center);
  Problem s = of_v3(g, input, offset, mask);
  const Tensor map = torch::stable::contiguous(input), offsets = torch::stable::contiguous(offset),
               masks = torch::stable::contiguous(mask);
  s.places.data = offsets.const_data_ptr(), s.factors.data = masks.const_data_ptr();
  return forward(s, map);
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                                  const Tensor& mask, const std::vector<int64_t>& kernel,
                                                  const std::vector<int64_t>& stride,
                                                  const std::vector<int64_t>& padding,
                                                  const std::vector<int64_t>& dilation, int64_t groups, double scale,
                                                  bool remove_center, int64_t wanted) {
  const Geometry g = geometry("dcnv3", kernel, stride, padding, dilation, groups, scale, remove_center);
  Problem s = of_v3(g, input, offset, mask);
  require_gradient(grad, s, input, g.op);
  const Tensor map = torch::stable::contiguous(input), offsets = torch::stable::contiguous(offset),
               masks = torch::stable::contiguous(mask);
  s.places.data = offsets.const_data_ptr(), s.factors.data = masks.const_data_ptr();
  Tensor grad_input = gradient(map, wanted & 1, map), grad_offset = gradient(offsets, wanted & 2, map),
         grad_mask = gradient(masks, wanted & 4, map);
  differentiate_all(s, map, torch::stable::contiguous(grad), sink(grad_input, wanted & 1),
                    sink(grad_offset, wanted & 2), sink(grad_mask, wanted & 4));
  return {grad_input, grad_offset, grad_mask};
}

// The problem of `dcnv4`; refuses tensors that do not fit.
Problem of_v4(const Geometry& g, const Tensor& input, const Tensor& offset_mask) {
  Problem s = problem(g, input, offset_mask, "offset_mask");
  require_fit(covers(offset_mask, s, input, (s.M * s.K * 3 + 7) / 8 * 8), g.op, "offset_mask");
  s.places = source(offset_mask, s, s.K * 3);
  s.factors = s.places;
  s.factors.first = s.K * 2;
  return s;
}

Tensor dcnv4(const Tensor& input, const Tensor& offset_mask, const std::vector<int64_t>& kernel,
             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
             const std::vector<int64_t>& dilation, int64_t groups, double scale, bool remove_center) {
  const Geometry g = geometry("dcnv4", kernel, stride, padding, dilation, groups, scale, remove_center);
  Problem s = of_v4(g, input, offset_mask);
  const Tensor map = torch::stable::contiguous(input), packed = torch::stable::contiguous(offset_mask);
  s.places.data = s.factors.data = packed.const_data_ptr();
  return forward(s, map);
}

std::tuple<Tensor, Tensor> dcnv4_backward(const Tensor& grad, const Tensor& input, const Tensor& offset_mask,
                                          const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                          int64_t groups, double scale, bool remove_center, int64_t wanted) {
  const Geometry g = geometry("dcnv4", kernel, stride, padding, dilation, groups, scale, remove_center);
  Problem s = of_v4(g, input, offset_mask);
  require_gradient(grad, s, input, g.op);
  const Tensor map = torch::stable::contiguous(input), packed = torch::stable::contiguous(offset_mask);
  s.places.data = s.factors.data = packed.const_data_ptr();
  Tensor grad_input = gradient(map, wanted & 1, map), grad_packed = gradient(packed, wanted & 2, map);
  // Channels past the last group are not read.
  if (wanted & 2) torch::stable::fill_(grad_packed, 0);
  const Sink both = sink(grad_packed, wanted & 2);
  differentiate_all(s, map, torch::stable::contiguous(grad), sink(grad_input, wanted & 1), both, both);
  return {grad_input, grad_packed};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&pliant::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&pliant::dcnv3_backward));
  m.impl("dcnv4", TORCH_BOX(&pliant::dcnv4));
  m.impl("dcnv4_backward", TORCH_BOX(&pliant::dcnv4_backward));
}
