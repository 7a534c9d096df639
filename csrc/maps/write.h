// Writing results to tensors, in their dtype and memory format.
#pragma once

#include "../abi.h"
#include "../threads.h"
#include "transpose.h"

namespace pliant {

// Whether torch would choose channels_last for a result computed from t, or channels_last_3d; it has neither for three
// dimensions.
inline bool channels_last(const Tensor& t) {
  if (t.dim() < 4 || t.stride(1) == 0) return false;
  int64_t least = 0;
  // In the order 1, last, …, 2, 0.
  for (int64_t i = 0, d = 1; i < t.dim(); ++i, d = d == 1 ? t.dim() - 1 : d == 2 ? 0 : d - 1) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * t.size(d);
  }
  return true;
}

// Memory for a map (N, C, spatial …) of like's dtype.
inline Tensor empty_map(const Tensor& like, const std::vector<int64_t>& sizes, bool last) {
  const auto format = !last               ? torch::headeronly::MemoryFormat::Contiguous
                      : sizes.size() == 5 ? torch::headeronly::MemoryFormat::ChannelsLast3d
                                          : torch::headeronly::MemoryFormat::ChannelsLast;
  return torch::stable::empty({sizes.data(), sizes.size()}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, format);
}

inline Tensor empty_map(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool last) {
  return empty_map(like, {N, C, H, W}, last);
}

// Memory for the gradient of `like`, a dense map of its shape and dtype, or, if it is not wanted, an empty tensor of
// input's dtype.
inline Tensor gradient_map(bool wanted, const Tensor& like, bool last, const Tensor& input) {
  if (!wanted) return torch::stable::new_empty(input, {0});
  std::vector<int64_t> sizes(like.dim());
  for (int64_t d = 0; d < like.dim(); ++d) sizes[d] = like.size(d);
  return empty_map(like, sizes, last);
}

template <class T, class A>
PLIANT_INLINE void convert(T* to, const A* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]);
}

// Write `count` values into a dense tensor from element `at` on.
template <class A>
void write_run(Tensor& t, int64_t at, const A* from, int64_t count) {
  dispatch(t.scalar_type(),
           [&](auto zero) { convert(static_cast<decltype(zero)*>(t.mutable_data_ptr()) + at, from, count); });
}

// Write a tile [positions][channels] of an image whose planes are `plane` elements large; `to` is the tile's first
// element.
template <class T, class A>
void write_tile(T* to, const A* from, int64_t positions, int64_t channels, int64_t plane, bool last) {
  if (last)
    convert(to, from, positions * channels);
  else
    transpose(to, plane, from, channels, channels, positions);
}

// Write channels-last values into a dense map of either format. With `groups`, channels are interleaved as Map
// (map.h) reads them.
template <class T, class A>
void write_map(T* to, const A* from, int64_t N, int64_t C, int64_t HW, bool last, int64_t groups = 1) {
  const int64_t blocks = (HW + kBlock - 1) / kBlock, each = C / groups;
  parallel(N * blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / blocks, p = i % blocks * kBlock, count = std::min(kBlock, HW - p);
      const A* in = from + (n * HW + p) * C;
      if (last && groups == 1) {
        convert(to + (n * HW + p) * C, in, count * C);
        continue;
      }
      for (int64_t q = 0; q < groups; ++q, in += each) {
        if (last) {
          T* const row = to + (n * HW + p) * C + q;
          for (int64_t at = 0; at < count; ++at)
            for (int64_t c = 0; c < each; ++c) row[at * C + c * groups] = T(in[at * C + c]);
        } else {
          transpose(to + (n * C + q) * HW + p, groups * HW, in, C, each, count);
        }
      }
    }
  });
}

}  // namespace pliant
