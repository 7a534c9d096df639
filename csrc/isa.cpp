// Which instruction level runs, and the operator that tells it.
#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "abi.h"

namespace pliant {
namespace {

struct Named {
  Level level;
  const char* name;
};
constexpr Named kLevels[] = {{Level::v4, "v4"}, {Level::v3, "v3"}, {Level::baseline, "baseline"}};

bool has(Level level) {
#if PLIANT_LEVELS
  if (level == Level::v4) return __builtin_cpu_supports("x86-64-v4");
  if (level == Level::v3) return __builtin_cpu_supports("x86-64-v3");
#endif
  return level == Level::baseline;
}

// The highest level of the processor.
Named highest() {
  for (const auto& each : kLevels)
    if (has(each.level)) return each;
  return kLevels[2];
}

// The level that PLIANT_LEVEL names, if the processor has it.
std::optional<Level> asked_for(const char* name) {
  for (const auto& each : kLevels)
    if (std::strcmp(name, each.name) == 0 && has(each.level)) return each.level;
  return std::nullopt;
}

const char* const kAsked = std::getenv("PLIANT_LEVEL");

}  // namespace

const Level kLevel = kAsked ? asked_for(kAsked).value_or(highest().level) : highest().level;

// Python asks this right after it has loaded the library: a level that cannot run is refused before any kernel runs.
int64_t instruction_level() {
  STD_TORCH_CHECK(!kAsked || asked_for(kAsked), "PLIANT_LEVEL must be baseline, v3 or v4, and at most what this ",
                  "processor has, ", highest().name, "; got ", kAsked);
  return static_cast<int64_t>(kLevel);
}

}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CompositeExplicitAutograd, m) {
  m.impl("instruction_level", TORCH_BOX(&pliant::instruction_level));
}
