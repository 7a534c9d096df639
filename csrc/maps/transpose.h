// Transposes, which turn channels-last rows into planes and planes into rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../isa.h"

namespace pliant {

// Rows and columns of the blocks in which matrices are transposed.
inline constexpr int64_t kBlock = 16;

// out[i][j] = in[j][i] for four by four floats, in vectors of four.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PLIANT_SHUFFLES 1
PLIANT_INLINE void transpose_four(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
  typedef float Four __attribute__((vector_size(16)));
  Four row[4];
  for (int j = 0; j < 4; ++j) __builtin_memcpy(&row[j], in + j * in_stride, sizeof(Four));
  const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Four d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Four turned[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                          __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(out + i * out_stride, &turned[i], sizeof(Four));
}
#endif
#endif

// out[i][j] = in[j][i] for a block that fits into level-1 cache; rows of `out` are written from end to end.
template <class T, class A>
PLIANT_INLINE void transpose_block(T* out, int64_t out_stride, const A* in, int64_t in_stride, int64_t rows,
                                   int64_t cols) {
  int64_t i0 = 0;
#ifdef PLIANT_SHUFFLES
  if constexpr (std::is_same_v<T, float> && std::is_same_v<A, float>) {
    for (; i0 + 4 <= rows; i0 += 4) {
      int64_t j = 0;
      for (; j + 4 <= cols; j += 4)
        transpose_four(out + i0 * out_stride + j, out_stride, in + j * in_stride + i0, in_stride);
      for (; j < cols; ++j)
        for (int64_t i = i0; i < i0 + 4; ++i) out[i * out_stride + j] = in[j * in_stride + i];
    }
  }
#endif
  for (int64_t i = i0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[i * out_stride + j] = T(in[j * in_stride + i]);
}

// The same for a matrix of any size, block by block.
template <class T, class A>
void transpose(T* out, int64_t out_stride, const A* in, int64_t in_stride, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; i += kBlock)
    for (int64_t j = 0; j < cols; j += kBlock)
      transpose_block(out + i * out_stride + j, out_stride, in + j * in_stride + i, in_stride,
                      std::min(kBlock, rows - i), std::min(kBlock, cols - j));
}

}  // namespace pliant
