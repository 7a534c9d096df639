// Matrix products by torch on our own memory, through the ATen calls that torch::stable does not wrap.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../abi.h"

namespace pliant {

// A tensor over `data`, without a copy: rows × cols with the given strides. Never throws: after an error the handle is
// empty, which `mm` reports.
template <class A>
class Matrix {
 public:
  Matrix(const A* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    int64_t sizes[] = {rows, cols}, strides[] = {row_stride, col_stride};
    // Outputs are handed over the same way, and torch takes the address without const.
    void* memory = const_cast<A*>(data);
    if (aoti_torch_create_tensor_from_blob(memory, 2, sizes, strides, 0, static_cast<int32_t>(kScalarType<A>),
                                           aoti_torch_device_type_cpu(), 0, &handle_) != AOTI_TORCH_SUCCESS)
      handle_ = nullptr;
  }
  ~Matrix() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

// out = a·b, or out += a·b. Returns false on failure, because threads of a parallel loop must not throw.
template <class A>
bool mm(const Matrix<A>& out, const Matrix<A>& a, const Matrix<A>& b, bool add = false) {
  if (!out.get() || !a.get() || !b.get()) return false;
  const auto error = add ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0)
                         : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get());
  return error == AOTI_TORCH_SUCCESS;
}

}  // namespace pliant
