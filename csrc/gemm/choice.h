// Matrix products: torch's own, in double and on processors below AVX2 in float32, or the packed product of panels.h.
// Which one runs is decided once per process by the instruction level and the environment variable PLIANT_PRODUCTS.
#pragma once

#include <cstdlib>
#include <cstring>

#include "../abi.h"
#include "../isa.h"

namespace pliant {

// PLIANT_PRODUCTS=torch leaves every product to torch, in float32; PLIANT_PRODUCTS=bfloat16 multiplies bfloat16 as such
// on any processor; PLIANT_PRODUCTS=wide does so too, and packs all products for vectors of sixteen on any processor.
inline bool asked_for(const char* products) {
  const char* const asked = std::getenv("PLIANT_PRODUCTS");
  bool known = !asked;
  for (const char* each : {"torch", "bfloat16", "wide"}) known = known || std::strcmp(asked, each) == 0;
  STD_TORCH_CHECK(known, "PLIANT_PRODUCTS must be torch, bfloat16 or wide, got ", asked);
  return asked && std::strcmp(asked, products) == 0;
}

// Whether the processor multiplies bfloat16 by itself.
inline bool has_bfloat16() {
#if PLIANT_LEVELS
  static const bool has = level() == Level::v4 && __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

// Whether bfloat16 is multiplied as such, else it is widened.
inline bool bfloat16_products() {
  static const bool yes = (has_bfloat16() && !asked_for("torch")) || asked_for("bfloat16") || asked_for("wide");
  return yes;
}

// Whether products of V run packed: in float32 with AVX2 and wider, where torch's product packs both matrices at each
// call and takes longer (benchmarks/NOTES.md); in bfloat16 always.
template <class V>
bool packed_products() {
  static const bool packed = (level() != Level::baseline && !asked_for("torch")) || asked_for("wide");
  return std::is_same_v<V, BFloat16> || (std::is_same_v<V, float> && packed);
}

// Call f with values of the types of maps, of sums, and of the matrices that are multiplied. The latter are bfloat16 if
// maps are and bfloat16 is multiplied as such; not where there are no matrices (depthwise convolution).
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
