// The operator that returns the instruction level of the kernels.
#include "isa.h"

#include "abi.h"

namespace pliant {

int64_t instruction_level() {
#if PLIANT_LEVELS
  // The loader asks the same when it picks a clone.
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
  return 0;
}

}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CompositeExplicitAutograd, m) {
  m.impl("instruction_level", TORCH_BOX(&pliant::instruction_level));
}
