// Columns: a row per position with the values of all its taps. They are gathered from images, and their gradient is
// scattered into sums of the images' gradient.
#pragma once

#include <vector>

#include "../maps/map.h"
#include "../maps/write.h"
#include "../sampling/volume.h"
#include "shape.h"

namespace pliant {

// Channels [c0, c0 + size) of one offset group and one convolution group. Tap k of channel c0 is at column
// `first + k·stride`: convolution groups one after another, tap-major within, so that each is one matrix. Depthwise
// convolution needs no matrices, its columns are tap-major throughout.
struct Segment {
  int64_t c0, size, first, stride;
};

// The segments of each offset group, in columns of `taps` taps.
inline std::vector<std::vector<Segment>> segments(const ConvShape& s, int64_t taps) {
  std::vector<std::vector<Segment>> found(s.G);
  const int64_t per_offset = s.C / s.G, per_conv = s.depthwise ? s.C : s.Cg;
  for (int64_t c0 = 0; c0 < s.C;) {
    const int64_t end = std::min((c0 / per_offset + 1) * per_offset, (c0 / per_conv + 1) * per_conv);
    const int64_t first = c0 / per_conv * per_conv * taps + c0 % per_conv;
    found[c0 / per_offset].push_back({c0, end - c0, first, per_conv});
    c0 = end;
  }
  return found;
}

// Distance between the columns of two positions. In a frame the last tap needs room for all values of a pixel.
inline int64_t column_pitch(const ConvShape& s, int64_t taps) {
  return taps * s.C + (s.framed ? kPixel - s.C : 0);
}

// Some images of the input, framed or channels-last, and what columns of `taps` taps read of them. A is the type of
// sums, M that of channels-last maps.
template <class A, class M>
class ConvInput {
 public:
  ConvInput(const Tensor& input, const ConvShape& s, int64_t taps)
      : s_(s), pitch_(column_pitch(s, taps)), planes_(input), parts_(segments(s, taps)), zeros_(s.C, M(0.0f)) {
    if (s.framed)
      frame_.emplace(s.together(), s.C, s.H, s.W);
    else
      map_.emplace(input, 1, s.together());
  }

  // Read images [first, first + count), at most ConvShape::together.
  void read(int64_t first, int64_t count) {
    first_ = first;
    if (frame_)
      frame_->read(planes_, first, count, s_.geometry.clamp);
    else
      map_->read(first, count);
  }

  // Write tap k of the columns: image n at the samples `at` of offset group j.
  template <class V>
  void gather(V* columns, int64_t n, int64_t j, int64_t k, const Samples<A>& at, int64_t count) const {
    if (frame_) return pliant::gather(columns + k * s_.C, pitch_, at, frame_->image(n - first_), frame_->row(), count);
    for (const auto& part : parts_[j]) {
      V* const to = columns + part.first + k * part.stride;
      const M* const from = image(n) + part.c0;
      if (s_.volume)
        gather_volume(to, pitch_, at, from, zeros_.data(), s_.C, part.size, count);
      else
        pliant::gather(to, pitch_, at, from, zeros_.data(), s_.C, part.size, count);
    }
  }

  // sums[i] = Σ_c grad·corner_i for tap k of the columns' gradient; eight corners in a volume.
  void dots(A* const* sums, const A* grad, int64_t n, int64_t j, int64_t k, const Samples<A>& at, int64_t count) const {
    if (frame_)
      return pliant::dots(sums, grad + k * s_.C, pitch_, at, frame_->image(n - first_), frame_->row(), s_.C, count);
    const int planes = s_.volume ? 2 : 1;
    for (int i = 0; i < 4 * planes; ++i) std::fill_n(sums[i], count, A(0));
    for (const auto& part : parts_[j])
      pliant::dots(sums, grad + part.first + k * part.stride, pitch_, at, planes, image(n) + part.c0, zeros_.data(),
                   s_.C, part.size, count);
  }

  // Write the sums over all taps of a depthwise convolution, without columns; `set` and `taps` as in pliant::blend.
  void blend(A* out, int64_t n, int64_t j, const Samples<A>& at, int64_t set, Tap<A, M>* taps, const A* factors,
             const A* bias, int64_t count) const {
    for (const auto& part : parts_[j]) {
      const M* const first = image(n) + part.c0;
      if (s_.volume)
        blend_volume(out + part.c0, s_.C, at, set, s_.K, taps, factors + part.c0, bias + part.c0, first, zeros_.data(),
                     s_.C, part.size, count);
      else
        pliant::blend(out + part.c0, s_.C, at, set, s_.K, taps, factors + part.c0, bias + part.c0, first, zeros_.data(),
                      s_.C, part.size, count);
    }
  }

 private:
  const M* image(int64_t n) const { return map_->data + (n - first_) * s_.pixels * s_.C; }

  const ConvShape& s_;
  int64_t pitch_, first_ = 0;
  Planes planes_;
  std::vector<std::vector<Segment>> parts_;
  std::vector<M> zeros_;
  std::optional<Map<M>> map_;
  std::optional<Frame<A>> frame_;
};

// Sums of the gradient of some images: framed, or channels-last, in the result's own memory where that is its layout
// and A its type.
template <class A>
class ImageSums {
 public:
  ImageSums(Tensor& result, const ConvShape& s, int64_t taps, bool last)
      : result_(result), s_(s), pitch_(column_pitch(s, taps)), parts_(segments(s, taps)), last_(last) {
    if (s.framed)
      frame_.emplace(s.together(), s.C, s.H, s.W);
    else if (!last || result.scalar_type() != kScalarType<A>)
      own_ = Buffer<A>(s.together() * size());
  }

  // Begin images [first, first + count) with zeros, or with one value per channel.
  void begin(int64_t first, int64_t count, const A* bias) {
    first_ = first, count_ = count;
    if (frame_) return frame_->clear(count, bias);
    data_ = own_ ? own_.get() : static_cast<A*>(result_.mutable_data_ptr()) + first * size();
    if (bias)
      parallel(count * s_.pixels, 1 + (1 << 15) / s_.C, [&](int64_t i, int64_t end) {
        for (; i < end; ++i) std::copy_n(bias, s_.C, data_ + i * s_.C);
      });
    else
      parallel(count * size(), 1 << 15, [&](int64_t i, int64_t end) { std::fill(data_ + i, data_ + end, A(0)); });
  }

  // Add tap k of the columns' gradient, channels [c0, c1) alone.
  void scatter(const A* grad, int64_t n, int64_t j, int64_t k, const Samples<A>& at, int64_t c0, int64_t c1,
               int64_t count) const {
    if (frame_) return pliant::scatter(frame_->image(n - first_), grad + k * s_.C, pitch_, at, frame_->row(), count);
    for (const auto& part : parts_[j]) {
      const int64_t begin = std::max(part.c0, c0), end = std::min(part.c0 + part.size, c1);
      if (begin < end)
        pliant::scatter(data_ + (n - first_) * size() + begin, grad + part.first + k * part.stride + begin - part.c0,
                        pitch_, at, s_.volume ? 2 : 1, s_.C, end - begin, count);
    }
  }

  // Write those images to the result, whose type is T.
  template <class T>
  void write() const {
    T* const to = static_cast<T*>(result_.mutable_data_ptr()) + first_ * size();
    if (frame_)
      frame_->write(to, count_, last_, s_.geometry.clamp);
    else if (own_)
      write_map(to, own_.get(), count_, s_.C, s_.pixels, last_);
  }

 private:
  int64_t size() const { return s_.pixels * s_.C; }

  Tensor& result_;
  const ConvShape& s_;
  int64_t pitch_;
  std::vector<std::vector<Segment>> parts_;
  bool last_;
  int64_t first_ = 0, count_ = 0;
  std::optional<Frame<A>> frame_;
  Buffer<A> own_;
  A* data_ = nullptr;
};

}  // namespace pliant
