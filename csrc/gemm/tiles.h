// The packed product of bfloat16 in the tile registers of AMX.
#pragma once

#include "multiply.h"

namespace pliant {

// Whether the processor has AMX for bfloat16 and the system grants its registers to this process.
bool has_tiles();

// As `multiply` for panels of kTiles.width columns, which it reads in squares of sixteen.
inline constexpr Blocking kTiles{32, 32, 256};
void multiply_tiles(float* out, int64_t out_stride, const float* start, int64_t start_stride, const BFloat16* a,
                    int64_t stride, const BFloat16* panel, int64_t rows, int64_t depth, int64_t width);

}  // namespace pliant
