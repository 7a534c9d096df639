// The four operators as one: what their arguments say about the pool.
#pragma once

#include "pool.h"

namespace pliant {

inline Pool deform_roi_pool_of(const Tensor& input, const Tensor& rois, int64_t Ph, int64_t Pw, double scale,
                               int64_t ratio, double gamma) {
  Pool s(input, rois, Ph, Pw, scale, ratio);
  s.gamma = gamma;
  return s;
}

inline Pool roi_align_of(const Tensor& input, const Tensor& rois, int64_t Ph, int64_t Pw, double scale, int64_t ratio,
                         bool aligned) {
  Pool s(input, rois, Ph, Pw, scale, ratio);
  s.aligned = aligned;
  return s;
}

inline Pool ps_roi_align_of(const Tensor& input, const Tensor& rois, int64_t Ph, int64_t Pw, double scale,
                            int64_t ratio) {
  Pool s(input, rois, Ph, Pw, scale, ratio);
  s.Gh = Ph, s.Gw = Pw;
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

}  // namespace pliant
