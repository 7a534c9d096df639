// What every operator needs of torch: the stable C++ interface, tensors, dtypes and their dispatch, and the refusal of
// arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

namespace pliant {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type of coordinates, weights and sums: float, and double for double.
template <class T>
struct Work {
  using type = float;
};
template <>
struct Work<double> {
  using type = double;
};

// The dtype of a tensor whose elements are A.
template <class A>
inline constexpr ScalarType kScalarType = std::is_same_v<A, double>     ? ScalarType::Double
                                          : std::is_same_v<A, BFloat16> ? ScalarType::BFloat16
                                          : std::is_same_v<A, Half>     ? ScalarType::Half
                                                                        : ScalarType::Float;

// Call f with a value of the C++ type of `type`, which must be one of the four that kernels take.
template <class F>
void dispatch(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    default:
      STD_TORCH_CHECK(false, "there is no kernel for this dtype");
  }
}

// The dtypes that kernels take.
inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}
inline bool is_floating(const Tensor& t) {
  return is_floating(t.scalar_type());
}

inline bool has_shape(const Tensor& t, std::initializer_list<int64_t> sizes) {
  if (t.dim() != int64_t(sizes.size())) return false;
  int64_t d = 0;
  return std::all_of(sizes.begin(), sizes.end(), [&](int64_t n) { return t.size(d++) == n; });
}

// Whether a tensor (offsets, masks, boxes) may accompany an input of dtype `type`: it has that dtype or, for an input
// of 16 bits, float32.
inline bool accompanies(const Tensor& t, ScalarType type) {
  const bool low = type == ScalarType::BFloat16 || type == ScalarType::Half;
  return t.scalar_type() == type || (low && t.scalar_type() == ScalarType::Float);
}

// The one refusal of every kernel, before it reads any element. It names an argument of the schema; what that must be,
// Python says, which checks the arguments before the call or, on the eager short cut, after a refusal.
inline void require_fit(bool fits, const char* op, const char* argument) {
  STD_TORCH_CHECK(fits, op, ": ", argument, " does not fit the other arguments");
}

// The numbers of a list that the schema leaves open in length.
template <size_t n>
std::array<int64_t, n> numbers(const std::vector<int64_t>& list, const char* op, const char* argument) {
  require_fit(list.size() == n, op, argument);
  std::array<int64_t, n> found{};
  std::copy(list.begin(), list.end(), found.begin());
  return found;
}

}  // namespace pliant
