// What is not an operator: which instruction level the clones run at.
#include "common.h"

namespace pliant {

int64_t instruction_level() {
#if defined(__x86_64__) && defined(__linux__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 3;
#endif
  return 0;
}

}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CompositeExplicitAutograd, m) {
  m.impl("instruction_level", TORCH_BOX(&pliant::instruction_level));
}
