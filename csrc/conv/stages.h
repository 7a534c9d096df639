// Stages of a convolution's backward pass besides its products (products.h): turning the output's gradient into the
// matrices that they read, and the gradients of mask and offset.
#pragma once

#include "../maps/planes.h"
#include "../maps/transpose.h"
#include "../sampling/sampling.h"
#include "shape.h"

namespace pliant {

// A tile of the output's gradient as two matrices, rows [positions][O] and turned [O][positions].
template <class V>
struct GradientTile {
  const V *rows, *turned;
  int64_t rows_stride, turned_stride;
};

// Turns tiles of the output's gradient into the matrices that are wanted. If the gradient is dense and of type V, its
// own memory serves as the one that it already is.
template <class V>
class OutputGradient {
 public:
  OutputGradient(const Tensor& grad, const ConvShape& s, bool want_rows, bool want_turned)
      : s_(s), planes_(grad), want_rows_(want_rows), want_turned_(want_turned) {
    const bool in_place = planes_.type == kScalarType<V> && planes_.h == s.Wo * planes_.w;
    is_rows_ = in_place && planes_.c == 1;
    is_turned_ = in_place && !is_rows_ && planes_.w == 1;
  }

  // Elements per position of the memory that `turn` needs for rows and for turned.
  int64_t rows_room() const { return want_rows_ && !is_rows_ ? s_.O : 0; }
  int64_t turned_room() const { return (want_turned_ || !is_rows_) && !is_turned_ ? s_.O : 0; }

  // The tile of positions [p0, p0 + count) of image n.
  GradientTile<V> turn(int64_t n, int64_t p0, int64_t count, V* rows, V* turned) const {
    const V* const first = static_cast<const V*>(planes_.data) + n * planes_.n + p0 * planes_.w;
    GradientTile<V> tile{rows, turned, s_.O, count};
    if (is_rows_)
      tile.rows = first, tile.rows_stride = planes_.w;
    else if (is_turned_)
      tile.turned = first, tile.turned_stride = planes_.c;
    else
      for (int64_t o = 0; o < s_.O; ++o) planes_.read(n, o, s_.Wo, p0, count, turned + o * count);
    if (want_turned_ && is_rows_) transpose(turned, count, tile.rows, tile.rows_stride, s_.O, count);
    if (want_rows_ && !is_rows_) transpose(rows, s_.O, tile.turned, tile.turned_stride, count, s_.O);
    return tile;
  }

 private:
  const ConvShape& s_;
  Planes planes_;
  bool want_rows_, want_turned_, is_rows_, is_turned_;
};

// The gradient of the mask from the dots of columns' gradient and corners.
template <class A>
void mask_gradient(A* out, const A* const dots[4], const Samples<A>& at, int64_t count) {
  const auto &d = dots, &w = at.weight;
  for (int64_t i = 0; i < count; ++i)
    out[i] = w[0][i] * d[0][i] + w[1][i] * d[1][i] + w[2][i] * d[2][i] + w[3][i] * d[3][i];
}

// The gradients of a volume's mask and of the offset along z, from `mask_gradient` in the near plane (`out`) and the
// far.
template <class A>
void volume_mask_gradient(A* out, const A* far, const Samples<A>& at, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = (1 - at.fz[i]) * out[i] + at.fz[i] * far[i];
}
template <class A>
void plane_gradient(A* out, const A* far, const Samples<A>& at, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = at.factor[i] * (far[i] - out[i]);
}

// The gradient of the vertical offset.
template <class A>
void row_gradient(A* out, const A* const dots[4], const Samples<A>& at, int64_t count) {
  const auto& d = dots;
  for (int64_t i = 0; i < count; ++i)
    out[i] = at.mask[i] * ((1 - at.fx[i]) * (d[2][i] - d[0][i]) + at.fx[i] * (d[3][i] - d[1][i]));
}

// The gradient of the horizontal offset.
template <class A>
void column_gradient(A* out, const A* const dots[4], const Samples<A>& at, int64_t count) {
  const auto& d = dots;
  for (int64_t i = 0; i < count; ++i)
    out[i] = at.mask[i] * ((1 - at.fy[i]) * (d[1][i] - d[0][i]) + at.fy[i] * (d[3][i] - d[2][i]));
}

}  // namespace pliant
