// The packed product's kernel: rows times one panel.
#pragma once

#include <cstdint>

namespace pliant {

// Six rows by two vectors of eight are twelve sums, as many as sixteen registers hold beside the factors.
inline constexpr int64_t kRows = 6, kPanel = 16;

// out[i][0..width) = start[i][0..width) + Σ_k a[i][k]·panel[k][0..width) for `rows` rows. `start` may be `out`.
void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const float* a, int64_t stride,
              const float* panel, int64_t rows, int64_t depth, int64_t width);

}  // namespace pliant
