// The packed product: one matrix is packed once, in panels of a few columns; rows of the other are read in place. Each
// sum runs over k in order, so that neither tiles nor threads change a bit.
#pragma once

#include <cstring>

#include "../maps/transpose.h"
#include "../memory.h"
#include "../threads.h"
#include "multiply.h"

namespace pliant {

// Pack one panel of `panel_width` columns of a matrix whose element (k, n) is at k·sk + n·sn, one of the two being 1;
// zeros beyond `width` and in the half of a cell that is left.
inline void pack(float* panel, int64_t panel_width, const float* from, int64_t sk, int64_t sn, int64_t depth,
                 int64_t width) {
  if (width < panel_width) std::fill_n(panel, depth * panel_width, 0.0f);
  if (sn == 1)
    for (int64_t k = 0; k < depth; ++k) std::copy_n(from + k * sk, width, panel + k * panel_width);
  else
    transpose_block(panel, panel_width, from, sn, depth, width);
}
inline void pack(BFloat16* panel, int64_t panel_width, const BFloat16* from, int64_t sk, int64_t sn, int64_t depth,
                 int64_t width) {
  if (width < panel_width || depth % 2) std::memset(panel, 0, cells<BFloat16>(depth) * panel_width * 4);
  for (int64_t k = 0; k + 2 <= depth; k += 2, panel += 2 * panel_width, from += 2 * sk)
    if (sn == 1)
      for (int64_t n = 0; n < width; ++n) panel[2 * n] = from[n], panel[2 * n + 1] = from[n + sk];
    else
      for (int64_t n = 0; n < width; ++n) std::memcpy(panel + 2 * n, from + n * sn, 4);
  if (depth % 2)
    for (int64_t n = 0; n < width; ++n) panel[2 * n] = from[n * sn];
}

// sums[i][0..width) += Σ_k a[i][k]·b[k][0..width) for `rows` rows, where b is used once: its panels are packed one
// after another into `room`, which holds room_for_panel(depth) values.
template <class V>
int64_t room_for_panel(int64_t depth) {
  return cells<V>(depth) * kCell<V> * blocking<V>().width;
}
template <class V>
void multiply_add(float* sums, int64_t sums_stride, const V* a, int64_t a_stride, const V* b, int64_t b_stride,
                  int64_t rows, int64_t depth, int64_t width, V* room) {
  const int64_t most = blocking<V>().width;
  for (int64_t n = 0; n < width; n += most) {
    const int64_t some = std::min(most, width - n);
    pack(room, most, b + n, b_stride, 1, depth, some);
    multiply(sums + n, sums_stride, sums + n, sums_stride, a, a_stride, room, rows, depth, some);
  }
}

// Matrices [depth][width] that are multiplied many times, packed by all threads. They are multiplied `chunk` of the
// depth at a time, in runs of at most blocking<V>().depth cells.
template <class V>
class Panels {
 public:
  Panels() = default;
  // `count` matrices, in `memory` of values(…) or in memory of their own. The panels are written by `fill`, or have
  // been.
  Panels(int64_t count, int64_t depth, int64_t width, int64_t chunk, V* memory = nullptr)
      : count_(count),
        depth_(depth),
        width_(width),
        chunk_(chunk),
        panel_width_(blocking<V>().width),
        each_(pieces(width, panel_width_)),
        cells_(pieces(depth, chunk) * cells<V>(chunk)),
        own_(memory ? 0 : values(count, depth, width, chunk)),
        data_(memory ? memory : own_.get()) {}

  static int64_t values(int64_t count, int64_t depth, int64_t width, int64_t chunk) {
    const int64_t most = blocking<V>().width;
    return count * pieces(depth, chunk) * cells<V>(chunk) * kCell<V> * pieces(width, most) * most;
  }

  // Pack the matrices. Element (k, n + j) of the i-th is at k·sk + j·sn from the address that rows(i, n, width, room)
  // returns, which may use `scratch` elements of `room`.
  template <class F>
  void fill(int64_t sk, int64_t sn, int64_t scratch, F&& rows) {
    const int64_t all = count_ * each_, lanes = lanes_for(all);
    const Buffer<V> room(lanes * scratch);
    for_lanes(lanes, all, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = at / each_, n = at % each_ * panel_width_, some = std::min(panel_width_, width_ - n);
        const V* from = rows(i, n, some, room.get() + lane * scratch);
        for (int64_t c = 0; c < pieces(depth_, chunk_); ++c)
          for_runs(c, [&](int64_t k, int64_t run) {
            pack(panel(i, n, c, k, run), panel_width_, from + (c * chunk_ + k) * sk, sk, sn, run, some);
          });
      }
    });
  }

  // out = start + a·(chunk c of matrix i). `start` may be `out`.
  void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const V* a, int64_t stride,
                int64_t rows, int64_t i, int64_t c) const {
    for_runs(c, [&](int64_t k, int64_t run) {
      for (int64_t n = 0; n < width_; n += panel_width_)
        pliant::multiply(out + n, out_stride, start + n, start_stride, a + k, stride, panel(i, n, c, k, run), rows, run,
                         std::min(panel_width_, width_ - n));
      start = out, start_stride = out_stride;
    });
  }

 private:
  // Call f(k, depth) for the runs of one chunk, k counted from its beginning. All runs but the last are whole cells.
  template <class F>
  void for_runs(int64_t c, F&& f) const {
    const int64_t all = std::min(chunk_, depth_ - c * chunk_), whole = cells<V>(all),
                  count = pieces(whole, blocking<V>().depth);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t k = whole * r / count * kCell<V>;
      f(k, std::min(whole * (r + 1) / count * kCell<V>, all) - k);
    }
  }
  // The panel of matrix i at column n, for the run of `run` values that begins at k of chunk c.
  V* panel(int64_t i, int64_t n, int64_t c, int64_t k, int64_t run) const {
    return data_ + (i * cells_ + c * cells<V>(chunk_)) * kCell<V> * each_ * panel_width_ + k * each_ * panel_width_ +
           n * cells<V>(run) * kCell<V>;
  }
  int64_t count_ = 0, depth_ = 0, width_ = 0, chunk_ = 0, panel_width_ = 0, each_ = 0, cells_ = 0;
  Buffer<V> own_;
  V* data_ = nullptr;
};

}  // namespace pliant
