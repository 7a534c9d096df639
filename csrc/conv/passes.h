// The two passes of a deformable convolution over tensors that fit each other, as rows (shape.h).
#pragma once

#include "shape.h"

namespace pliant {

// Write the output, channels-last if `last`, with the weight packed by `pack` where it is given. Return false where a
// matrix product failed.
bool convolve(const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& mask, const ConvShape& s, Tensor& output, bool last,
              const Tensor* packed = nullptr);

// Return the weight as products read it; empty where they read the weight itself.
Tensor pack(const Tensor& weight, const ConvShape& s);

// The gradients to compute, and where they go: dense tensors of any number of axes.
struct Gradients {
  bool want_input, want_offset, want_weight, want_mask;
  Tensor input, offset, weight, mask;
  bool last = false;   // the layout of the input's gradient
  bool alike = false;  // whether that has the same bits for any number of threads
  // Where that is wanted alone, the bias it begins with instead of zeros: transposed convolution's.
  const std::optional<Tensor>& bias = kNone;

  bool want_columns() const { return want_input || want_dots(); }
  bool want_dots() const { return want_offset || want_mask; }
  inline static const std::optional<Tensor> kNone;
};

// Compute gradients from that of the output. The input is read only for those of offset, weight and mask. Return false
// where a matrix product failed.
bool differentiate(const Tensor& grad, const Tensor& input, const Tensor& offset, const Tensor& weight,
                   const std::optional<Tensor>& mask, const ConvShape& s, Gradients& out);

}  // namespace pliant
