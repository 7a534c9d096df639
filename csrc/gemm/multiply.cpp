// The inner loops of the packed product: six rows times one panel, the sums in registers.
#include "multiply.h"

#include <algorithm>

#include "../isa.h"

namespace pliant {
namespace {

typedef float Eight __attribute__((vector_size(32)));

PLIANT_AVX2 PLIANT_INLINE Eight load(const float* from) {
  Eight v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// out[r][:] = start[r][:] + Σ_k a[r][k]·panel[k][:] for `Rows` rows and `Vectors` vectors.
template <int Rows, int Vectors>
PLIANT_AVX2 PLIANT_INLINE void block(float* out, int64_t out_stride, const float* start, int64_t start_stride,
                                     const float* a, int64_t stride, const float* panel, int64_t depth) {
  Eight sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = load(start + r * start_stride + 8 * v);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
    Eight b[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) b[v] = load(panel + 8 * v);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const float x = a[r * stride + k];
      const Eight xs = {x, x, x, x, x, x, x, x};
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += xs * b[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) __builtin_memcpy(out + r * out_stride + 8 * v, &sum[r][v], sizeof(Eight));
}

// The same for a number of rows that is not known at compile time, at most six.
template <int Vectors, int Rows = kRows>
PLIANT_AVX2 PLIANT_INLINE void rows_left(int64_t rows, float* out, int64_t out_stride, const float* start,
                                         int64_t start_stride, const float* a, int64_t stride, const float* panel,
                                         int64_t depth) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return block<Rows, Vectors>(out, out_stride, start, start_stride, a, stride, panel, depth);
    rows_left<Vectors, Rows - 1>(rows, out, out_stride, start, start_stride, a, stride, panel, depth);
  }
}

}  // namespace

PLIANT_AVX2 void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const float* a,
                          int64_t stride, const float* panel, int64_t rows, int64_t depth, int64_t width) {
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t n = std::min(kRows, rows - i);
    const float *from = start + i * start_stride, *left = a + i * stride;
    float* to = out + i * out_stride;
    // Fetch the next panel from level-3 cache meanwhile: each k of it is one cache line.
    for (int64_t k = depth * i / rows; k < depth * (i + n) / rows; ++k)
      __builtin_prefetch(panel + (depth + k) * kPanel, 0, 2);
    if (width == kPanel) {
      rows_left<2>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else if (width == kPanel / 2) {
      rows_left<1>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else {
      float edge[kRows * kPanel] = {};
      for (int64_t r = 0; r < n; ++r) std::copy_n(from + r * start_stride, width, edge + r * kPanel);
      if (width < kPanel / 2)
        rows_left<1>(n, edge, kPanel, edge, kPanel, left, stride, panel, depth);
      else
        rows_left<2>(n, edge, kPanel, edge, kPanel, left, stride, panel, depth);
      for (int64_t r = 0; r < n; ++r) std::copy_n(edge + r * kPanel, width, to + r * out_stride);
    }
  }
}

}  // namespace pliant
