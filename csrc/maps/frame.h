// Frames of zeros: images of at most four channels, every pixel four values wide, surrounded by zeros. All four corners
// of every sample exist, so one index finds them without a test, and each corner is one vector.
#pragma once

#include "../memory.h"
#include "../threads.h"
#include "planes.h"

namespace pliant {

// Values of a framed pixel. Those past the channels of the image are unused.
inline constexpr int64_t kPixel = 4;

// Images of a map, or sums of their gradients. Two rows of zeros are above an image, one below, one column on each
// side: pixel (y, x) of an image is pixel (y + 2, x + 1) of its frame. `locate` gives a sample that is out of bounds
// the upper left corner of the frame, where all four corners are zeros.
template <class A>
class Frame {
 public:
  // Room for `images` images at a time.
  Frame(int64_t images, int64_t C, int64_t H, int64_t W)
      : C_(C), H_(H), W_(W), row_((W + 2) * kPixel), image_((H + 3) * row_), memory_(images * image_) {}

  // The frame of the n-th of them.
  A* image(int64_t n) const { return memory_.get() + n * image_; }
  // Distance from a pixel to the one below.
  int64_t row() const { return row_; }

  // Fill `count` frames with zeros, and their images with one value per channel if there is a `bias`.
  void clear(int64_t count, const A* bias = nullptr) const {
    rows(count, [&](A* to, int64_t, int64_t y) {
      std::fill_n(to, row_, A(0));
      if (!bias || y < 0 || y == H_) return;
      for (int64_t x = 1; x <= W_; ++x) std::copy_n(bias, C_, to + x * kPixel);
    });
  }

  // Read images [first, first + count) of a map. With boundary "clamp" the right and lower sides of the frame repeat
  // the pixels next to them.
  void read(const Planes& planes, int64_t first, int64_t count, bool clamp) const {
    rows(count, [&](A* to, int64_t n, int64_t y) {
      std::fill_n(to, row_, A(0));
      if (y < 0 || (y == H_ && !clamp)) return;
      for (int64_t c = 0; c < C_; ++c)
        planes.read(first + n, c, W_, std::min(y, H_ - 1) * W_, W_, to + kPixel + c, kPixel);
      if (clamp) std::copy_n(to + W_ * kPixel, kPixel, to + (W_ + 1) * kPixel);
    });
  }

  // Write the sums of `count` images into dense memory. With boundary "clamp" sums on the right and lower sides of the
  // frame belong to the pixels next to them.
  template <class T>
  void write(T* out, int64_t count, bool last, bool clamp) const {
    rows(count, [&](A* from, int64_t n, int64_t y) {
      if (y < 0 || y == H_) return;
      if (clamp && y == H_ - 1)
        for (int64_t i = 0; i < row_; ++i) from[i] += from[row_ + i];
      if (clamp)
        for (int64_t c = 0; c < C_; ++c) from[W_ * kPixel + c] += from[(W_ + 1) * kPixel + c];
      const int64_t stride = last ? C_ : 1, plane = last ? 1 : H_ * W_;
      for (int64_t c = 0; c < C_; ++c) {
        T* to = out + n * C_ * H_ * W_ + y * W_ * stride + c * plane;
        for (int64_t x = 0; x < W_; ++x) to[x * stride] = T(from[(x + 1) * kPixel + c]);
      }
    });
  }

 private:
  // Call f(row, n, y) for all rows of the frames, y < 0 above the image and y = H below.
  template <class F>
  void rows(int64_t count, F&& f) const {
    const int64_t high = H_ + 3;
    parallel(count * high, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(memory_.get() + i * row_, i / high, i % high - 2);
    });
  }

  int64_t C_, H_, W_, row_, image_;
  Buffer<A> memory_;
};

}  // namespace pliant
