// The four operators as one: what their arguments say about the pool, and whether they fit.
#pragma once

#include <initializer_list>

#include "pool.h"

namespace pliant {

inline Pool roi_align_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
                         int64_t ratio, bool aligned) {
  const auto [Ph, Pw] = numbers<2>(output_size);
  Pool s(input, rois, Ph, Pw, scale, ratio);
  s.aligned = aligned;
  return s;
}

inline Pool deform_roi_pool_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                               double scale, int64_t ratio, double gamma) {
  Pool s = roi_align_of(input, rois, output_size, scale, ratio, true);
  s.gamma = gamma;
  return s;
}

inline Pool ps_roi_align_of(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                            double scale, int64_t ratio) {
  Pool s = roi_align_of(input, rois, output_size, scale, ratio, true);
  s.Gh = s.Ph, s.Gw = s.Pw;
  return s;
}

inline Pool deform_psroi_pool_of(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                                 int64_t P, double scale, int64_t group, int64_t part, int64_t samples, double std) {
  Pool s(input, rois, P, P, scale, samples);
  s.Gh = s.Gw = group;
  s.part = part;
  s.classes = offset ? offset->size(1) / 2 : 1;
  s.counted = true;
  s.gamma = std;
  return s;
}

// Raise unless the tensors fit each other: no pixel is read before. The words for it are Python's (op.py), which asks
// first. Image indices are not looked at here: a box of an image that is not there reads nothing.
inline void check(const Pool& s, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                  const std::optional<Tensor>& mask, const Tensor* grad = nullptr) {
  auto fits = [](bool holds) {
    STD_TORCH_CHECK(holds, "RoI pooling: arguments that do not fit each other; the functions of pliant.ops say which");
  };
  auto is = [](const Tensor& t, std::initializer_list<int64_t> sizes) {
    if (t.dim() != int64_t(sizes.size())) return false;
    int64_t d = 0;
    return std::all_of(sizes.begin(), sizes.end(), [&](int64_t n) { return t.size(d++) == n; });
  };
  const ScalarType type = input.scalar_type();
  const bool low = type == ScalarType::BFloat16 || type == ScalarType::Half;
  auto beside = [&](const Tensor& t, bool wide) {
    return t.scalar_type() == type || (wide && t.scalar_type() == ScalarType::Float);
  };
  constexpr int64_t kMost = int64_t(1) << 31;
  auto sized = [](int64_t n) { return n > 0 && n < kMost; };
  fits(low || type == ScalarType::Float || type == ScalarType::Double);
  fits(input.dim() == 4 && sized(s.C) && sized(s.H) && sized(s.W) && is(rois, {s.R, 5}) && beside(rois, true));
  fits(sized(s.Ph) && sized(s.Pw) && sized(s.Gh) && sized(s.Gw) && s.part >= 0 && s.part < kMost);
  fits(s.C % s.groups() == 0 && sized(s.classes) && s.outputs() % s.classes == 0 && s.samples < kMost);
  fits(!s.counted || (s.part > 0 && s.samples > 0));
  const int64_t high = s.part ? s.part : s.Ph, wide = s.part ? s.part : s.Pw;
  fits(!offset || (beside(*offset, low) && is(*offset, {s.R, 2 * s.classes, high, wide})));
  fits(!mask || (beside(*mask, low) && is(*mask, {s.R, 1, s.Ph, s.Pw})));
  fits(!grad || (grad->scalar_type() == type && is(*grad, {s.R, s.outputs(), s.Ph, s.Pw})));
}

}  // namespace pliant
