// Local response normalization of channels-first maps, row by row: the tensor is read once from memory and kFused times
// from the nearest cache, and no squares are stored.
#pragma once

#include "loops.h"
#include "three_quarters.h"

namespace pliant {
namespace {

// Rows of ratios and of scaled gradients that backward keeps: no more than it needs, so that they stay in the nearest
// cache.
constexpr int64_t kRing = kFused;

// One thread's memory: a row of zeros, then the two rings.
template <class S>
struct Rings {
  int64_t pitch;
  S *zeros, *ratio, *scaled;

  Rings(const Job<S>& job, S* memory)
      : pitch(job.pitch), zeros(memory), ratio(zeros + pitch), scaled(ratio + kRing * pitch) {
    std::fill(zeros, zeros + job.columns, S(0));
  }
  S* ratio_row(int64_t row) const { return ratio + row % kRing * pitch; }
  S* scaled_row(int64_t row) const { return scaled + row % kRing * pitch; }
};

#if PLIANT_LEVELS
// Row c of a tile that begins at `start`, and the gradient of the row whose window ends with it, by three_quarters.h.
inline void estimated_row(const Job<float>& job, const float* const* p, int64_t start, int64_t c, int64_t n,
                          const Rings<float>& rings) {
  const int64_t inner = job.layout.inner, at = start + c * inner;
  if (!job.grad) return three_quarters::forward_row(job, p, job.x + at, job.out + at, n);
  const int64_t i = c - job.before, then = start + i * inner;
  const float* ratios[kFused - 1];
  for (int64_t j = 0; j < kFused - 1; ++j) {
    const int64_t row = c - (kFused - 1) + j;
    ratios[j] = row >= 0 ? rings.ratio_row(row) : rings.zeros;
  }
  three_quarters::backward_row(job, p, job.x + at, job.grad + at, rings.scaled_row(c), rings.ratio_row(c), ratios,
                               i < 0 ? nullptr : job.x + then, i < 0 ? nullptr : rings.scaled_row(i),
                               i < 0 ? nullptr : job.out + then, n);
}
#endif

// A tile of n columns that begins at `start`.
template <class S>
void run_tile(const Job<S>& job, int64_t start, int64_t n, const Rings<S>& rings) {
  const int64_t C = job.layout.rows, inner = job.layout.inner;
  const S* p[kFused];
  for (int64_t c = 0; c < C + (job.grad ? job.before : 0); ++c) {
    if (c < C) {
      for (int64_t j = 0; j < kFused; ++j) {
        const int64_t row = c - job.before + j;
        p[j] = row >= 0 && row < C ? job.x + start + row * inner : rings.zeros;
      }
#if PLIANT_LEVELS
      if constexpr (std::is_same_v<S, float>)
        if (job.estimated) {
          estimated_row(job, p, start, c, n, rings);
          continue;
        }
#endif
      const int64_t at = start + c * inner;
      if (job.grad)
        ratio_row(job, p, job.x + at, job.grad + at, rings.scaled_row(c), rings.ratio_row(c), n);
      else
        forward_row(job, p, job.x + at, job.out + at, n);
    }
    // The window of row i, mirrored: rows i − after … i + before, of which c is the last.
    const int64_t i = c - job.before, at = start + i * inner;
    if (!job.grad || i < 0) continue;
    for (int64_t j = 0; j < kFused; ++j) {
      const int64_t row = i - job.after + j;
      p[j] = row >= 0 && row < C ? rings.ratio_row(row) : rings.zeros;
    }
    gather_row(job, p, job.x + at, rings.scaled_row(i), job.out + at, n);
  }
}

// Tiles [begin, end) of the tensor's columns.
template <class S>
void run_rows(const Job<S>& job, int64_t begin, int64_t end, S* memory) {
  const Rings<S> rings(job, memory);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t column = index % job.tiles * job.columns, n = std::min(job.columns, job.layout.inner - column);
    run_tile(job, index / job.tiles * job.layout.rows * job.layout.inner + column, n, rings);
  }
}

}  // namespace
}  // namespace pliant
