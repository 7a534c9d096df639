// Samples of the tiles of a convolution: the regular grid, plus the offsets of each tap.
#pragma once

#include "../maps/planes.h"
#include "../memory.h"
#include "../sampling/sampling.h"
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
  }

  // Samples of one of the `sets` taps.
  Samples<A> set(int64_t index) const {
    Samples<A> found = all_;
    const int64_t i = index * largest_;
    for (auto& pixel : found.pixel) pixel += i;
    for (auto& weight : found.weight) weight += i;
    for (auto* array : {&found.fy, &found.fx, &found.mask}) *array += i;
    return found;
  }

  // Begin the tile of positions [p0, p0 + count) of image n.
  void begin_tile(int64_t n, int64_t p0, int64_t count) {
    n_ = n, p0_ = p0, count_ = count;
    const auto [sh, sw] = s_.geometry.stride;
    for (int64_t i = 0, ho = p0 / s_.Wo, wo = p0 % s_.Wo; i < count; ++i) {
      at_.row[i] = A(ho * sh);
      at_.column[i] = A(wo * sw);
      if (++wo == s_.Wo) wo = 0, ++ho;
    }
  }

  // Locate the samples of tap k of offset group j.
  void locate_tap(const Samples<A>& out, int64_t j, int64_t k) {
    const auto [ph, pw] = s_.geometry.padding;
    const auto [dh, dw] = s_.geometry.dilation;
    offset_.read(n_, (j * s_.K + k) * 2, s_.Wo, p0_, count_, at_.y);
    offset_.read(n_, (j * s_.K + k) * 2 + 1, s_.Wo, p0_, count_, at_.x);
    at_.dy = A(k / s_.Kw * dh - ph), at_.dx = A(k % s_.Kw * dw - pw);
    locate(out, at_, count_, s_.H, s_.W, s_.geometry.clamp, s_.framed);
    if (mask_)
      mask_->read(n_, j * s_.K + k, s_.Wo, p0_, count_, out.mask);
    else
      std::fill_n(out.mask, count_, A(1));
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
