// The packed product's kernel for every instruction level.
#include "multiply.h"

#include <algorithm>

#include "choice.h"
#include "tiles.h"
#if PLIANT_LEVELS
#include <immintrin.h>
#endif

namespace pliant {
namespace {

#define PLIANT_BFLOAT16 0
#define PLIANT_TARGET
namespace baseline {
#include "block.h"
}
#undef PLIANT_TARGET
#if PLIANT_LEVELS
#define PLIANT_TARGET PLIANT_V3
namespace v3 {
#include "block.h"
}
#undef PLIANT_TARGET
#define PLIANT_TARGET PLIANT_V4
namespace v4 {
#include "block.h"
}
#undef PLIANT_TARGET
#undef PLIANT_BFLOAT16
#define PLIANT_BFLOAT16 1
#define PLIANT_TARGET __attribute__((target("arch=x86-64-v4,avx512bf16")))
namespace bf16 {
#include "block.h"
}
#endif

template <int Lanes, class V>
void at_level(float* out, int64_t out_stride, const float* start, int64_t start_stride, const V* a, int64_t stride,
              const V* panel, int64_t rows, int64_t depth, int64_t width) {
#if PLIANT_LEVELS
  if (std::is_same_v<V, BFloat16> && has_bfloat16())
    return bf16::multiply<Lanes>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
  if (level() == Level::v4)
    return v4::multiply<Lanes>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
  if (level() == Level::v3)
    return v3::multiply<Lanes>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
#endif
  baseline::multiply<Lanes>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
}

}  // namespace

template <>
Blocking blocking<float>() {
  static const bool wide = level() == Level::v4 || asked_for("wide");
  return wide ? kSixteen : kEight;
}
template <>
Blocking blocking<BFloat16>() {
  return has_tiles() ? kTiles : blocking<float>();
}
template <>
Blocking blocking<double>() {
  return kEight;  // torch multiplies, whose tiles may be of any size
}

PLIANT_MULTIPLY(float) {
  if (blocking<float>().width == kSixteen.width)
    at_level<16>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
  else
    at_level<8>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
}
PLIANT_MULTIPLY(BFloat16) {
  if (has_tiles())
    multiply_tiles(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
  else if (blocking<BFloat16>().width == kSixteen.width)
    at_level<16>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
  else
    at_level<8>(out, out_stride, start, start_stride, a, stride, panel, rows, depth, width);
}

}  // namespace pliant
