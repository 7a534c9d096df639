// The packed product's kernel: rows times one panel.
//
// Both factors are read in cells of four bytes, one float or two bfloat16 that follow each other along k: a panel holds
// for each cell of k a row of `width` cells. A row of the other factor may end in half a cell.
#pragma once

#include <cstdint>

#include "../abi.h"
#include "../isa.h"

namespace pliant {

// Values of one cell.
template <class V>
inline constexpr int64_t kCell = 4 / sizeof(V);

// Cells that `depth` values of V fill, the last perhaps by half.
template <class V>
constexpr int64_t cells(int64_t depth) {
  return (depth + kCell<V> - 1) / kCell<V>;
}

// What is held in registers: the sums of `rows` rows by two vectors of `width` / 2 columns. Six rows by two vectors of
// eight are twelve sums, as many as sixteen registers hold beside the factors; twelve rows by two vectors of sixteen
// are 24 sums, for 32 registers. A panel has at most `depth` cells of k, so that it fits into level-1 cache together
// with some rows of that depth. Products of V are blocked by blocking<V>().
struct Blocking {
  int64_t rows, width, depth;
};
inline constexpr Blocking kEight{6, 16, 384}, kSixteen{12, 32, 256};
template <class V>
Blocking blocking();

// out[i][0..width) = start[i][0..width) + Σ_k a[i][k]·panel[k][0..width) for `rows` rows, k < depth. `start` may be
// `out`. bfloat16 is multiplied exactly and summed in float.
#define PLIANT_MULTIPLY(V)                                                                                            \
  void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const V* a, int64_t stride, \
                const V* panel, int64_t rows, int64_t depth, int64_t width)
PLIANT_DECLARE(PLIANT_MULTIPLY, (float), (BFloat16))

}  // namespace pliant
