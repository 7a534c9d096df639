// One call of local response normalization: how the tensor lies in memory, the window, and the cut into blocks.
#pragma once

#include <cstring>

#include "../abi.h"
#include "../isa.h"

namespace pliant {
namespace {

// A dense tensor is seen as [outer][rows][width][inner] in the order of its memory. The window runs over rows and, in
// the spatial region, over width too. Channels-first: rows = C, inner = H·W; channels-last: rows = C, inner = 1.
struct Layout {
  int64_t outer, rows, width, inner;
};

struct Window {
  int64_t before, after, half;  // over rows, and on both sides over width
  double a, beta, k;
};

// The number of taps that the loops sum themselves; other windows are summed beforehand.
constexpr int kFused = 5;

enum class Power { half, three_quarters, one, general };

// `batch` outer items × `chunk` rows × width × `columns` of inner make a block.
template <class T>
struct Job {
  using S = typename Work<T>::type;
  const T* x;
  const T* grad;
  T* out;
  Layout layout;
  int64_t before, after, half, taps;
  S a, k, beta, beta_rest, factor;  // factor = 2·a·β
  Power power;
  bool fused;      // the loops sum the window
  bool by_rows;    // they read rows of the tensor instead of scratch (rows.h)
  bool by_pixels;  // channels-last pixels, by three_quarters.h
  bool estimated;  // powers are estimated, by three_quarters.h
  int64_t lanes;   // of the vectors that do so
  int64_t batch, chunk, columns, chunks, tiles, blocks;
  int64_t pitch, item;  // distance of rows, and of outer items, in the scratch

  Job(const Layout& layout, const Window& window, const T* x, const T* grad, T* out)
      : x(x),
        grad(grad),
        out(out),
        layout(layout),
        // A window cannot reach further than the other end.
        before(std::min(window.before, layout.rows - 1)),
        after(std::min(window.after, layout.rows - 1)),
        half(std::min(window.half, layout.width - 1)),
        taps(before + after + 1),
        a(window.a),
        k(window.k),
        beta(window.beta),
        factor(2 * window.a * window.beta),
        power(window.beta == 0.5    ? Power::half
              : window.beta == 0.75 ? Power::three_quarters
              : window.beta == 1.0  ? Power::one
                                    : Power::general),
        fused(half == 0 && taps == kFused) {
    // β in two parts, of which the first has 16 bits: see power_loop.
    if constexpr (!std::is_same_v<T, double>) {
      uint32_t bits;
      std::memcpy(&bits, &beta, 4);
      bits &= 0xffffff00u;
      std::memcpy(&beta, &bits, 4);
    }
    beta_rest = window.beta - beta;
    plan();
  }

  int64_t wide() const { return layout.width + 2 * half; }

  // Elements of scratch that one thread needs.
  int64_t scratch() const {
    if (by_pixels) return grad ? 4 * (layout.rows + kFused - 1) : 1;
    return by_rows ? (1 + 2 * kFused) * pitch : (grad ? 4 : 2) * batch * item;
  }

 private:
  static constexpr int64_t kBudget = 4096;  // elements of a block, about

  // Cut the tensor into blocks. The cut depends on the shape alone.
  void plan() {
    const bool estimates =
        std::is_same_v<T, float> && fused && power == Power::three_quarters && level() != Level::baseline;
    by_pixels = estimates && layout.inner == 1 && layout.rows >= 8 && layout.rows <= kBudget;
    by_rows = !by_pixels && std::is_same_v<T, S> && fused && layout.inner >= 48;
    estimated = by_pixels;
    lanes = lanes_for_run(layout.rows);
    if (by_pixels)
      cut_pixels();
    else if (by_rows)
      cut_rows(estimates);
    else
      cut_blocks();
  }

  // Lanes of the vectors that estimate powers, in runs of at least `least` elements.
  static int64_t lanes_for_run(int64_t least) { return level() == Level::v4 && least >= 16 ? 16 : 8; }

  void cut_pixels() {
    tiles = columns = chunks = 1;
    chunk = layout.rows;
    batch = kBudget / layout.rows;
    blocks = (layout.outer + batch - 1) / batch;
  }

  // Wide tiles of columns read memory in order; kFused rows of one still fit into level-1 cache.
  void cut_rows(bool estimates) {
    const int64_t inner = layout.inner;
    tiles = (inner + 1023) / 1024;
    columns = ((inner + tiles - 1) / tiles + 15) / 16 * 16;
    tiles = (inner + columns - 1) / columns;
    pitch = columns + 16;  // rows a power of two apart would share the same few lines of a cache
    batch = 1, chunk = layout.rows, chunks = 1;
    blocks = layout.outer * tiles;
    const int64_t least = inner - (tiles - 1) * columns;
    estimated = estimates && least >= 8;
    lanes = lanes_for_run(least);
  }

  void cut_blocks() {
    const int64_t inner = layout.inner, margin = (taps - 1) * (grad ? 2 : 1);
    const int64_t least = std::min(layout.rows, std::max<int64_t>(16, 4 * margin));
    columns = inner;
    const int64_t room = std::max<int64_t>(kBudget / (least * layout.width) / 16 * 16, 32);
    if (inner > room + room / 2) {
      tiles = (inner + room - 1) / room;
      columns = ((inner + tiles - 1) / tiles + 15) / 16 * 16;
    }
    tiles = (inner + columns - 1) / columns;
    chunk = std::clamp<int64_t>(kBudget / (columns * layout.width), least, layout.rows);
    chunks = (layout.rows + chunk - 1) / chunk;
    chunk = (layout.rows + chunks - 1) / chunks;
    pitch = wide() * columns;
    item = (chunk + margin) * pitch;
    batch = tiles * chunks > 1 ? 1 : std::clamp<int64_t>(kBudget / item, 1, layout.outer);
    blocks = (layout.outer + batch - 1) / batch * tiles * chunks;
  }
};

}  // namespace
}  // namespace pliant
