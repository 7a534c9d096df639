// Who multiplies matrices: torch, in float or, on processors that can, in bfloat16; or we. A product of our own, in float,
// is for processors with AVX2 and nothing wider, where torch's packs both matrices at each call and takes longer
// (benchmarks/NOTES.md). One matrix comes in panels, packed once; rows of the other are read where they are. Each sum runs
// over k in order, so neither tiles nor threads change a bit.
#pragma once

#include <cstring>

#include "common.h"

namespace pliant {

// PLIANT_PRODUCTS=torch leaves every product to torch, PLIANT_PRODUCTS=bfloat16 multiplies bfloat16 as such anywhere.
inline bool asked_for(const char* products) {
  const char* const asked = std::getenv("PLIANT_PRODUCTS");
  STD_TORCH_CHECK(!asked || std::strcmp(asked, "torch") == 0 || std::strcmp(asked, "bfloat16") == 0,
                  "PLIANT_PRODUCTS must be torch or bfloat16, got ", asked);
  return asked && std::strcmp(asked, products) == 0;
}

// Whether products in V are ours.
template <class V>
bool our_products() {
  static const bool ours = !asked_for("torch") && avx2_and_nothing_wider();
  return ours && std::is_same_v<V, float>;
}

// Whether the processor multiplies bfloat16, which is several times faster than float: AMX comes with AVX512-BF16.
inline bool bfloat16_products() {
#if defined(__x86_64__)
  static const bool fast = (!asked_for("torch") && __builtin_cpu_supports("avx512bf16")) || asked_for("bfloat16");
#else
  static const bool fast = asked_for("bfloat16");
#endif
  return fast;
}

// Six rows by two vectors of eight are twelve sums, all that sixteen registers hold beside what is multiplied.
inline constexpr int64_t kRows = 6, kPanel = 16;
// A panel of so many k, and six rows of as many, fit into level-1 cache.
inline constexpr int64_t kDepth = 384;

// How many pieces of at most `most`, as alike as can be.
inline int64_t pieces(int64_t all, int64_t most) { return std::max<int64_t>((all + most - 1) / most, 1); }

namespace product {

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

template <int Vectors, int Rows = kRows>
PLIANT_AVX2 PLIANT_INLINE void rows_left(int64_t rows, float* out, int64_t out_stride, const float* start,
                                         int64_t start_stride, const float* a, int64_t stride, const float* panel,
                                         int64_t depth) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return block<Rows, Vectors>(out, out_stride, start, start_stride, a, stride, panel, depth);
    rows_left<Vectors, Rows - 1>(rows, out, out_stride, start, start_stride, a, stride, panel, depth);
  }
}

}  // namespace product

// out[i][0..width) = start[i][0..width) + Σ_k a[i][k]·panel[k][0..width) for `rows` rows. `start` may be `out`.
[[maybe_unused]] PLIANT_AVX2 static void multiply(float* out, int64_t out_stride, const float* start,
                                                  int64_t start_stride, const float* a, int64_t stride,
                                                  const float* panel, int64_t rows, int64_t depth, int64_t width) {
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t n = std::min(kRows, rows - i);
    const float *from = start + i * start_stride, *left = a + i * stride;
    float* to = out + i * out_stride;
    // Meanwhile the next panel comes nearer, from level-3 cache: each k of it is one line.
    for (int64_t k = depth * i / rows; k < depth * (i + n) / rows; ++k)
      __builtin_prefetch(panel + (depth + k) * kPanel, 0, 2);
    if (width == kPanel) {
      product::rows_left<2>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else if (width == kPanel / 2) {
      product::rows_left<1>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else {
      float edge[kRows * kPanel] = {};
      for (int64_t r = 0; r < n; ++r) std::copy_n(from + r * start_stride, width, edge + r * kPanel);
      if (width < kPanel / 2)
        product::rows_left<1>(n, edge, kPanel, edge, kPanel, left, stride, panel, depth);
      else
        product::rows_left<2>(n, edge, kPanel, edge, kPanel, left, stride, panel, depth);
      for (int64_t r = 0; r < n; ++r) std::copy_n(edge + r * kPanel, width, to + r * out_stride);
    }
  }
}

// Never called: products in other types are torch's.
template <class V>
void multiply(V*, int64_t, const V*, int64_t, const V*, int64_t, const V*, int64_t, int64_t, int64_t) {}

// One panel of a matrix whose element (k, n) stands at k·sk + n·sn, one of the two being 1; zeros beyond `width`.
template <class V>
void pack(V* panel, const V* from, int64_t sk, int64_t sn, int64_t depth, int64_t width) {
  if (width < kPanel) std::fill_n(panel, depth * kPanel, V(0.0f));
  if (sn == 1)
    for (int64_t k = 0; k < depth; ++k) std::copy_n(from + k * sk, width, panel + k * kPanel);
  else
    transpose(panel, kPanel, from, sn, depth, width);
}

// Matrices [depth][width] in panels, packed by all threads: what stays the same over many products. They are multiplied
// `chunk` of the depth at a time, at most kDepth of it at once.
template <class V>
class Panels {
 public:
  Panels() = default;
  // `count` matrices; element (k, n + j) of the i-th stands k·sk + j·sn after what rows(i, n, width, room) returns, which
  // may use `room` for `scratch` elements.
  template <class F>
  Panels(int64_t count, int64_t depth, int64_t width, int64_t chunk, int64_t sk, int64_t sn, int64_t scratch, F&& rows)
      : depth_(depth),
        width_(width),
        chunk_(chunk),
        each_(pieces(width, kPanel)),
        memory_(count * depth * each_ * kPanel) {
    const int64_t all = count * each_, lanes = std::min<int64_t>(torch::stable::get_num_threads(), all);
    const Buffer<V> room(lanes * scratch);
    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t lane = begin; lane < end; ++lane)
        for (int64_t at = all * lane / lanes; at < all * (lane + 1) / lanes; ++at) {
          const int64_t i = at / each_, n = at % each_ * kPanel, some = std::min(kPanel, width - n);
          const V* from = rows(i, n, some, room.get() + lane * scratch);
          for (int64_t c = 0; c < pieces(depth, chunk); ++c)
            for_runs(c, [&](int64_t k, int64_t run) { pack(panel(i, n, k, run), from + k * sk, sk, sn, run, some); });
        }
    });
  }

  // out = start + a·(chunk c of matrix i). `start` may be `out`.
  void multiply(V* out, int64_t out_stride, const V* start, int64_t start_stride, const V* a, int64_t stride,
                int64_t rows, int64_t i, int64_t c) const {
    for_runs(c, [&](int64_t k, int64_t run) {
      for (int64_t n = 0; n < width_; n += kPanel)
        pliant::multiply(out + n, out_stride, start + n, start_stride, a + (k - c * chunk_), stride,
                         panel(i, n, k, run), rows, run, std::min(kPanel, width_ - n));
      start = out, start_stride = out_stride;
    });
  }

 private:
  // Call f(k, depth) for the runs of one chunk.
  template <class F>
  void for_runs(int64_t c, F&& f) const {
    const int64_t begin = c * chunk_, all = std::min(chunk_, depth_ - begin), count = pieces(all, kDepth);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t k = all * r / count;
      f(begin + k, all * (r + 1) / count - k);
    }
  }
  // Row k, column n of matrix i, in a run of so many rows from k on.
  V* panel(int64_t i, int64_t n, int64_t k, int64_t run) const {
    return memory_.get() + (i * depth_ + k) * each_ * kPanel + n * run;
  }
  int64_t depth_ = 0, width_ = 0, chunk_ = 0, each_ = 0;
  Buffer<V> memory_;
};

}  // namespace pliant
