// Samples of the tiles of a convolution: the regular grid, plus the offsets of each tap.
#pragma once

#include "../maps/planes.h"
#include "../memory.h"
#include "../sampling/volume.h"
#include "shape.h"

namespace pliant {

// One thread's positions and samples.
template <class A>
class Sampler {
 public:
  // Room for `sets` taps of tiles of at most `largest` positions: backward keeps all K·G taps of a tile, forward one.
  Sampler(const ConvShape& s, const Tensor& offset, const std::optional<Tensor>& mask, Arena& arena, int64_t largest,
          int64_t sets)
      : s_(s), largest_(largest), offset_(offset) {
    if (mask) mask_.emplace(*mask);
    for (auto* array : {&at_.row, &at_.column, &at_.y, &at_.x}) arena.reserve(*array, largest);
    for (auto& pixel : all_.pixel) arena.reserve(pixel, s.framed && &pixel != all_.pixel ? 0 : largest * sets);
    for (auto& weight : all_.weight) arena.reserve(weight, largest * sets);
    for (auto* array : {&all_.fy, &all_.fx, &all_.mask}) arena.reserve(*array, largest * sets);
    const int64_t far = s.volume ? largest * sets : 0;
    for (auto* array : {&at_.plane, &at_.z}) arena.reserve(*array, s.volume ? largest : 0);
    for (auto& pixel : all_.far_pixel) arena.reserve(pixel, far);
    for (auto* array : {&all_.far_mask, &all_.fz, &all_.factor}) arena.reserve(*array, far);
  }

  // Samples of one of the `sets` taps.
  Samples<A> set(int64_t index) const { return all_.from(index * largest_); }

  // Begin the tile of positions [p0, p0 + count) of image n.
  void begin_tile(int64_t n, int64_t p0, int64_t count) {
    n_ = n, p0_ = p0, count_ = count;
    const auto [sd, sh, sw] = s_.geometry.stride;
    for (int64_t i = 0, row = p0 / s_.Wo, wo = p0 % s_.Wo; i < count; ++i) {
      at_.row[i] = A((s_.volume ? row % s_.Ho : row) * sh);
      at_.column[i] = A(wo * sw);
      if (s_.volume) at_.plane[i] = A(row / s_.Ho * sd);
      if (++wo == s_.Wo) wo = 0, ++row;
    }
    if (s_.geometry.axes == 1) std::fill_n(at_.y, count, A(0));
  }

  // Locate the samples of tap k of offset group j.
  void locate_tap(const Samples<A>& out, int64_t j, int64_t k) {
    const auto [pd, ph, pw] = s_.geometry.padding;
    const auto [dd, dh, dw] = s_.geometry.dilation;
    int64_t channel = (j * s_.K + k) * s_.geometry.axes;
    if (s_.volume) offset_.read(n_, channel++, s_.Wo, p0_, count_, at_.z);
    if (s_.geometry.axes > 1) offset_.read(n_, channel++, s_.Wo, p0_, count_, at_.y);
    offset_.read(n_, channel, s_.Wo, p0_, count_, at_.x);
    at_.dz = A(k / (s_.Kh * s_.Kw) * dd - pd);
    at_.dy = A(k / s_.Kw % s_.Kh * dh - ph), at_.dx = A(k % s_.Kw * dw - pw);
    locate(out, at_, count_, s_.H, s_.W, s_.geometry.clamp, s_.framed);
    A* const factor = s_.volume ? out.factor : out.mask;
    if (mask_)
      mask_->read(n_, j * s_.K + k, s_.Wo, p0_, count_, factor);
    else
      std::fill_n(factor, count_, A(1));
    if (s_.volume) locate_planes(out, at_, count_, s_.D, s_.H * s_.W, s_.geometry.clamp);
  }

 private:
  const ConvShape& s_;
  int64_t largest_, n_ = 0, p0_ = 0, count_ = 0;
  Planes offset_;
  std::optional<Planes> mask_;
  Positions<A> at_;
  Samples<A> all_;
};

}  // namespace pliant
