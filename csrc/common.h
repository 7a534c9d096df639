// What every kernel includes: the stable ABI, the multi-ISA macro, dtype dispatch, the parallel loop.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

// Plain loops, compiled for several instruction levels; the loader picks one. Clones do not reach into what they call,
// so everything under a PLIANT_CLONES function is PLIANT_INLINE.
#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define PLIANT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PLIANT_CLONES
#endif
#define PLIANT_INLINE inline __attribute__((always_inline))

namespace pliant {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type that coordinates, weights and sums are held in: float, and double for double.
template <class T>
struct Work {
  using type = float;
};
template <>
struct Work<double> {
  using type = double;
};

// Call f with a value of the C++ type behind `type`. Python has checked that it is one of these four.
template <class F>
void dispatch(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Half: return f(Half{});
    default: STD_TORCH_CHECK(false, "dtype without a kernel");
  }
}

// Run f(begin, end) on torch's own threads; f must not throw.
template <class F>
void parallel(int64_t count, int64_t grain, F&& f) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), f);
}

inline int thread_index() {
  uint32_t index = 0;
  torch_get_thread_idx(&index);
  return static_cast<int>(index);
}

}  // namespace pliant
