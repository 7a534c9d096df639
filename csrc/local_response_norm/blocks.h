// Local response normalization block by block. A block writes its squares into a scratch with zeros around them, where
// neighbours along the window are one fixed distance (the pitch) apart, so that every loop is a plain sum of shifted
// rows. Neighbouring blocks both compute the squares at their seam: nothing is shared, and the result is the same for
// any number of threads.
#pragma once

#include "loops.h"

namespace pliant {
namespace {

// The part of a tensor that a block covers.
struct Block {
  int64_t items, first, row0, row1, column0, columns;
};

template <class T>
Block block_at(const Job<T>& job, int64_t index) {
  const int64_t chunk = index % job.chunks, tile = index / job.chunks % job.tiles;
  const int64_t first = index / job.chunks / job.tiles * job.batch;
  Block b;
  b.first = first, b.items = std::min(job.batch, job.layout.outer - first);
  b.row0 = chunk * job.chunk, b.row1 = std::min(b.row0 + job.chunk, job.layout.rows);
  b.column0 = tile * job.columns, b.columns = std::min(job.columns, job.layout.inner - b.column0);
  return b;
}

// Call f(offset in the tensor, offset in the scratch, length, repeats, distance in the tensor, distance in the scratch)
// for the contiguous runs of rows [row0, row1) of every outer item; `base` is the row at the start of the scratch.
template <class T, class F>
void each_run(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, int64_t base, F&& f) {
  const Layout& s = job.layout;
  const int64_t line = s.width * s.inner, count = row1 - row0;
  int64_t tensor = (b.first * s.rows + row0) * line + b.column0, scratch = (row0 - base) * job.pitch;
  if (b.columns == s.inner && job.pitch == line)
    return f(tensor, scratch, count * line, b.items, s.rows * line, job.item);
  for (int64_t item = 0; item < b.items; ++item, tensor += s.rows * line, scratch += job.item) {
    if (b.columns == s.inner && job.columns == s.inner) {
      f(tensor, scratch, line, count, line, job.pitch);
    } else {
      for (int64_t w = 0; w < s.width; ++w)
        f(tensor + w * s.inner, scratch + w * job.columns, b.columns, count, line, job.pitch);
    }
  }
}

// Zero the elements of the scratch that rows [row0, row1) do not cover: outside the tensor and between its lines.
template <class T, class S>
void clear(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, S* scratch) {
  const int64_t from = std::max<int64_t>(row0, 0), to = std::min(row1, job.layout.rows);
  const bool gaps = job.half > 0 || b.columns < job.columns;
  for (int64_t item = 0; item < b.items; ++item, scratch += job.item) {
    std::fill(scratch, scratch + (gaps ? row1 - row0 : from - row0) * job.pitch, S(0));
    std::fill(scratch + (to - row0) * job.pitch, scratch + (row1 - row0) * job.pitch, S(0));
  }
}

// Write the squares of rows [row0, row1) of every item into q, with zeros outside the tensor.
template <class T, class S>
void squares(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, S* q) {
  clear(job, b, row0, row1, q);
  each_run(job, b, std::max<int64_t>(row0, 0), std::min(row1, job.layout.rows), row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             square_runs(job.x + at, q + place + job.half * job.columns, n, times, dx, dq);
           });
}

// Replace q by its sums over the window, `rows` rows of every item, unless the loops sum themselves.
template <class T, class S>
void sums(const Job<T>& job, const Block& b, int64_t rows, S* q, S* spare) {
  if (job.fused) return;
  const int64_t margin = 2 * job.half * job.columns;
  for (int64_t item = 0; item < b.items; ++item, q += job.item) {
    if (job.half > 0) window_sum(q, spare, (rows + job.taps - 1) * job.pitch - margin, 2 * job.half + 1, job.columns);
    if (job.taps > 1) window_sum(q, spare, rows * job.pitch - margin, job.taps, job.pitch);
  }
}

template <class T, class S>
void forward_block(const Job<T>& job, const Block& b, S* q, S* spare) {
  squares(job, b, b.row0 - job.before, b.row1 + job.after, q);
  sums(job, b, b.row1 - b.row0, q, spare);
  each_run(job, b, b.row0, b.row1, b.row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             forward_runs(job, job.x + at, q + place, job.out + at, n, times, dx, dq);
           });
}

template <class T, class S>
void backward_block(const Job<T>& job, const Block& b, S* q, S* spare, S* ratio, S* scaled) {
  // The gradient of row i gathers from rows i − after … i + before, whose own windows reach further.
  const int64_t row0 = b.row0 - job.after, row1 = b.row1 + job.before;
  squares(job, b, row0 - job.before, row1 + job.after, q);
  sums(job, b, row1 - row0, q, spare);
  clear(job, b, row0, row1, ratio);
  each_run(job, b, std::max<int64_t>(row0, 0), std::min(row1, job.layout.rows), row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             ratio_runs(job, job.x + at, job.grad + at, q + place, scaled + place,
                        ratio + place + job.half * job.columns, n, times, dx, dq);
           });
  sums(job, b, b.row1 - b.row0, ratio, spare);
  each_run(job, b, b.row0, b.row1, b.row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             gather_runs(job, job.x + at, scaled + place + job.after * job.pitch, ratio + place, job.out + at, n, times,
                         dx, dq);
           });
}

// Blocks [begin, end), forward or backward.
template <class T, class S>
void run_blocks(const Job<T>& job, int64_t begin, int64_t end, S* q) {
  const int64_t size = job.batch * job.item;
  for (int64_t index = begin; index < end; ++index) {
    const Block b = block_at(job, index);
    if (job.grad)
      backward_block(job, b, q, q + size, q + 2 * size, q + 3 * size);
    else
      forward_block(job, b, q, q + size);
  }
}

}  // namespace
}  // namespace pliant
