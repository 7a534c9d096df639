// Four-dimensional tensors of any dtype and strides, read by plane: offsets, masks, gradients, images.
#pragma once

#include "../abi.h"

namespace pliant {

struct Planes {
  const void* data;
  ScalarType type;
  int64_t n, c, h, w;  // strides

  explicit Planes(const Tensor& t)
      : data(t.const_data_ptr()),
        type(t.scalar_type()),
        n(t.stride(0)),
        c(t.stride(1)),
        h(t.stride(2)),
        w(t.stride(3)) {}

  // out[i·stride] = the value at row-major position `begin + i` of a plane whose rows are `width` long.
  template <class A>
  void read(int64_t image, int64_t channel, int64_t width, int64_t begin, int64_t count, A* out,
            int64_t stride = 1) const {
    dispatch(type, [&](auto zero) {
      const auto* plane = static_cast<const decltype(zero)*>(data) + image * n + channel * c;
      if (h == width && w == 1 && stride == 1) {
        for (int64_t i = 0; i < count; ++i) out[i] = A(plane[begin + i]);
      } else if (h == width * w) {
        for (int64_t i = 0; i < count; ++i) out[i * stride] = A(plane[(begin + i) * w]);
      } else {
        for (int64_t i = 0; i < count; ++i)
          out[i * stride] = A(plane[(begin + i) / width * h + (begin + i) % width * w]);
      }
    });
  }
};

}  // namespace pliant
