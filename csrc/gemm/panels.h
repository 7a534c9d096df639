// The packed product: one matrix is packed once, in panels of a few columns; rows of the other are read in place. Each
// sum runs over k in order, so that neither tiles nor threads change a bit.
#pragma once

#include "../maps/transpose.h"
#include "../memory.h"
#include "../threads.h"
#include "multiply.h"

namespace pliant {

// The largest depth of a panel: it fits into level-1 cache together with six rows of that depth.
inline constexpr int64_t kDepth = 384;

// Pack one panel of a matrix whose element (k, n) is at k·sk + n·sn, one of the two being 1; zeros beyond `width`.
inline void pack(float* panel, const float* from, int64_t sk, int64_t sn, int64_t depth, int64_t width) {
  if (width < kPanel) std::fill_n(panel, depth * kPanel, 0.0f);
  if (sn == 1)
    for (int64_t k = 0; k < depth; ++k) std::copy_n(from + k * sk, width, panel + k * kPanel);
  else
    transpose_block(panel, kPanel, from, sn, depth, width);
}

// sums[i][0..width) += Σ_k a[i][k]·b[k][0..width) for `rows` rows, where b is used once: `room` holds depth·kPanel
// values, into which its panels are packed one after another.
inline void multiply_add(float* sums, int64_t sums_stride, const float* a, int64_t a_stride, const float* b,
                         int64_t b_stride, int64_t rows, int64_t depth, int64_t width, float* room) {
  for (int64_t n = 0; n < width; n += kPanel) {
    const int64_t some = std::min(kPanel, width - n);
    pack(room, b + n, b_stride, 1, depth, some);
    multiply(sums + n, sums_stride, sums + n, sums_stride, a, a_stride, room, rows, depth, some);
  }
}

// Matrices [depth][width] that are multiplied many times, packed by all threads. They are multiplied `chunk` of the
// depth at a time, in runs of at most kDepth.
class Panels {
 public:
  Panels() = default;
  // `count` matrices; element (k, n + j) of the i-th is at k·sk + j·sn from the address that rows(i, n, width, room)
  // returns, which may use `scratch` elements of `room`.
  template <class F>
  Panels(int64_t count, int64_t depth, int64_t width, int64_t chunk, int64_t sk, int64_t sn, int64_t scratch, F&& rows)
      : depth_(depth),
        width_(width),
        chunk_(chunk),
        each_(pieces(width, kPanel)),
        memory_(count * depth * each_ * kPanel) {
    const int64_t all = count * each_, lanes = lanes_for(all);
    const Buffer<float> room(lanes * scratch);
    for_lanes(lanes, all, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = at / each_, n = at % each_ * kPanel, some = std::min(kPanel, width - n);
        const float* from = rows(i, n, some, room.get() + lane * scratch);
        for (int64_t c = 0; c < pieces(depth, chunk); ++c)
          for_runs(c, [&](int64_t k, int64_t run) { pack(panel(i, n, k, run), from + k * sk, sk, sn, run, some); });
      }
    });
  }

  // out = start + a·(chunk c of matrix i). `start` may be `out`.
  void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const float* a,
                int64_t stride, int64_t rows, int64_t i, int64_t c) const {
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
  // The panel of matrix i at column n, for the run of `run` rows that begins at k.
  float* panel(int64_t i, int64_t n, int64_t k, int64_t run) const {
    return memory_.get() + (i * depth_ + k) * each_ * kPanel + n * run;
  }
  int64_t depth_ = 0, width_ = 0, chunk_ = 0, each_ = 0;
  Buffer<float> memory_;
};

}  // namespace pliant
