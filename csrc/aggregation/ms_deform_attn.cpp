// Multi-scale deformable attention.
#include <tuple>

#include "problem.h"

namespace pliant {
namespace {

constexpr const char* kName = "ms_deform_attn";

// Refuse tensors that do not fit each other: locations are (N, Q, M, L, P, 2), or (N, Q, M, ΣP, 2) with `points`.
void require_all(const Tensor& value, const std::vector<int64_t>& shapes, const std::vector<int64_t>& starts,
                 const Tensor& locations, const Tensor& weights, const std::vector<int64_t>& points) {
  auto require = [](bool fits, const char* argument) { require_fit(fits, kName, argument); };
  const ScalarType type = value.scalar_type();
  const int64_t L = starts.size();
  require(is_floating(type) && value.dim() == 4, "value");
  const int64_t N = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
  require(M >= 1 && D >= 1 && S <= INT32_MAX && could_hold({S, M, D}), "value");
  require(L >= 1, "level_start_index");
  require(int64_t(shapes.size()) == 2 * L, "spatial_shapes");
  for (int64_t l = 0; l < L; ++l) {
    const int64_t H = shapes[2 * l], W = shapes[2 * l + 1];
    require(H >= 1 && W >= 1 && H <= S && W <= S, "spatial_shapes");
    require(starts[l] >= 0 && starts[l] <= S && H * W <= S - starts[l], "level_start_index");
  }
  const bool uniform = points.empty();
  require(accompanies(locations, type) && locations.dim() == (uniform ? 6 : 5), "sampling_locations");
  require(accompanies(weights, type), "attention_weights");
  const int64_t Q = locations.size(1);
  if (uniform) {
    const int64_t P = locations.size(4);
    require(P <= INT32_MAX && could_hold({Q, M, L, P}) && has_shape(locations, {N, Q, M, L, P, 2}),
            "sampling_locations");
    require(has_shape(weights, {N, Q, M, L, P}), "attention_weights");
    return;
  }
  int64_t K = 0;
  for (const int64_t P : points) {
    require(P >= 1 && P <= INT32_MAX, "points");
    K += P;
  }
  require(int64_t(points.size()) == L, "points");
  require(could_hold({Q, M, K}) && has_shape(locations, {N, Q, M, K, 2}), "sampling_locations");
  require(has_shape(weights, {N, Q, M, K}), "attention_weights");
}

Source source(const Tensor& t, int64_t Q, int64_t M, int64_t each) {
  return {t.const_data_ptr(), t.scalar_type(), Q * M * each, M * each, each};
}

// `locations` and `weights` are contiguous.
Problem problem(const Tensor& value, const std::vector<int64_t>& shapes, const std::vector<int64_t>& starts,
                const Tensor& locations, const Tensor& weights, const std::vector<int64_t>& points, bool discrete) {
  Problem s{value.size(0), value.size(1), value.size(2), value.size(3), locations.size(1), 0};
  const double half = discrete ? 0.5 : -0.5;
  for (size_t l = 0; l < starts.size(); ++l) {
    const int64_t P = points.empty() ? locations.size(4) : points[l], H = shapes[2 * l], W = shapes[2 * l + 1];
    s.K += P;
    s.start_x.resize(s.K, half), s.start_y.resize(s.K, half);
    s.scale_x.resize(s.K, double(W)), s.scale_y.resize(s.K, double(H));
    s.rows.resize(s.K, int32_t(H)), s.columns.resize(s.K, int32_t(W)), s.first.resize(s.K, int32_t(starts[l]));
  }
  s.places = source(locations, s.Q, s.M, 2 * s.K);
  s.factors = source(weights, s.Q, s.M, s.K);
  s.discrete = discrete;
  return s;
}

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                      const std::vector<int64_t>& level_start_index, const Tensor& sampling_locations,
                      const Tensor& attention_weights, const std::vector<int64_t>& points, bool discrete) {
  require_all(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, points);
  const Tensor map = torch::stable::contiguous(value), locations = torch::stable::contiguous(sampling_locations),
               weights = torch::stable::contiguous(attention_weights);
  const Problem s = problem(map, spatial_shapes, level_start_index, locations, weights, points, discrete);
  Tensor output = in_huge_pages(torch::stable::new_empty(value, {s.N, s.Q, s.M * s.D}));
  aggregate_all(s, map, output);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
    const std::vector<int64_t>& level_start_index, const Tensor& sampling_locations, const Tensor& attention_weights,
    const std::vector<int64_t>& points, bool discrete, int64_t wanted) {
  require_all(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, points);
  require_fit(grad.scalar_type() == value.scalar_type() &&
                  has_shape(grad, {value.size(0), sampling_locations.size(1), value.size(2) * value.size(3)}),
              kName, "grad");
  const Tensor map = torch::stable::contiguous(value), locations = torch::stable::contiguous(sampling_locations),
               weights = torch::stable::contiguous(attention_weights);
  const Problem s = problem(map, spatial_shapes, level_start_index, locations, weights, points, discrete);
  Tensor grad_value = gradient(value, wanted & 1, value), grad_locations = gradient(locations, wanted & 2, value),
         grad_weights = gradient(weights, wanted & 4, value);
  differentiate_all(s, map, torch::stable::contiguous(grad), sink(grad_value, wanted & 1),
                    sink(grad_locations, wanted & 2), sink(grad_weights, wanted & 4));
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&pliant::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&pliant::ms_deform_attn_backward));
}
