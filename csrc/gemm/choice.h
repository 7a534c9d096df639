// Matrix products: torch's own, in float32 or bfloat16, or the packed product of panels.h. Which one runs is decided
// once per process by the processor and the environment variable PLIANT_PRODUCTS.
#pragma once

#include <cstdlib>
#include <cstring>

#include "../abi.h"
#include "../isa.h"

namespace pliant {

// PLIANT_PRODUCTS=torch leaves every product to torch, in float32; PLIANT_PRODUCTS=bfloat16 multiplies bfloat16 as such
// on any processor.
inline bool asked_for(const char* products) {
  const char* const asked = std::getenv("PLIANT_PRODUCTS");
  STD_TORCH_CHECK(!asked || std::strcmp(asked, "torch") == 0 || std::strcmp(asked, "bfloat16") == 0,
                  "PLIANT_PRODUCTS must be torch or bfloat16, got ", asked);
  return asked && std::strcmp(asked, products) == 0;
}

// Whether products of V run packed (panels.h): in float32 on processors with AVX2 and nothing wider, where torch's
// product packs both matrices at each call and takes longer (benchmarks/NOTES.md).
template <class V>
bool packed_products() {
  static const bool packed = !asked_for("torch") && avx2_and_nothing_wider();
  return packed && std::is_same_v<V, float>;
}

// Whether the processor multiplies bfloat16, several times faster than float32: AMX comes with AVX512-BF16.
inline bool bfloat16_products() {
#if defined(__x86_64__)
  static const bool fast = (!asked_for("torch") && __builtin_cpu_supports("avx512bf16")) || asked_for("bfloat16");
#else
  static const bool fast = asked_for("bfloat16");
#endif
  return fast;
}

// Call f with values of the types of maps, of sums, and of the matrices that are multiplied. The latter are bfloat16 if
// maps are and the processor multiplies it; not where there are no matrices (depthwise convolution).
template <class F>
void dispatch_products(ScalarType type, bool matrices, F&& f) {
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    if constexpr (std::is_same_v<T, BFloat16>)
      if (bfloat16_products() && matrices) return f(zero, A{}, zero);
    f(zero, A{}, A{});
  });
}

}  // namespace pliant
