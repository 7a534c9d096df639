// The inner loops of the packed product in AMX. A tile register holds sixteen rows of 64 bytes: sixteen sums, or
// sixteen cells of a factor. Four tiles of sums, two by two, leave four for the factors.
#include "tiles.h"

#include <algorithm>

#include "choice.h"

#if PLIANT_LEVELS && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pliant {

namespace {

// What __builtin_cpu_supports does not tell everywhere: AMX-TILE and AMX-BF16.
bool processor_has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kBoth = 1u << 24 | 1u << 22;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBoth) == kBoth;
}

// The system saves tiles at a change of threads only for processes that have asked.
bool system_grants_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool has_tiles() {
  static const bool has = has_bfloat16() && processor_has_tiles() && system_grants_tiles();
  return has;
}

namespace {

#define PLIANT_AMX __attribute__((target("arch=x86-64-v4,amx-tile,amx-bf16")))

constexpr int64_t kSide = 16;  // rows of a tile, and cells or sums of a row

// What ldtilecfg reads. Tiles 0 and 1 are the sums of the upper sixteen rows, 2 and 3 those of the lower; 4 and 5 are
// the rows of the left factor, 6 and 7 the halves of the panel.
struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Configuration(int64_t upper, int64_t lower) {
    const int64_t of[8] = {upper, upper, lower, lower, upper, lower, kSide, kSide};
    for (int i = 0; i < 8; ++i) row_bytes[i] = 64, rows[i] = uint8_t(std::max<int64_t>(of[i], 1));
  }
};

// The compiler does not see that tile loads read memory: what has been written must be there before.
PLIANT_INLINE void written() {
  asm volatile("" ::: "memory");
}

// Add sixteen cells of k. `Wide` says whether columns beyond the first sixteen are wanted, `Tall` the same of rows.
template <bool Wide, bool Tall>
PLIANT_AMX PLIANT_INLINE void step(const void* upper, const void* lower, int64_t bytes, const void* panel) {
  _tile_loadd(6, panel, 128);
  _tile_loadd(4, upper, bytes);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (Wide) {
    _tile_loadd(7, static_cast<const char*>(panel) + 64, 128);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (Tall) {
    _tile_loadd(5, lower, bytes);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (Wide) _tile_dpbf16ps(3, 5, 7);
  }
}

// The last cells of k, fewer than sixteen, as a whole step: zeros beyond.
struct Rest {
  alignas(64) BFloat16 left[2 * kSide][2 * kSide], panel[kSide][4 * kSide];
};

// One block of at most 32 rows.
template <bool Wide, bool Tall>
PLIANT_AMX PLIANT_INLINE void block(float* out, int64_t out_stride, const float* start, int64_t start_stride,
                                    const BFloat16* a, int64_t stride, const BFloat16* panel, int64_t rows,
                                    int64_t depth, Rest& rest) {
  const int64_t from = start_stride * 4, to = out_stride * 4, whole = depth / (2 * kSide) * 2 * kSide;
  const BFloat16* const lower = a + kSide * stride;
  _tile_loadd(0, start, from);
  if constexpr (Wide) _tile_loadd(1, start + kSide, from);
  if constexpr (Tall) _tile_loadd(2, start + kSide * start_stride, from);
  if constexpr (Wide && Tall) _tile_loadd(3, start + kSide * start_stride + kSide, from);
  for (int64_t k = 0; k < whole; k += 2 * kSide)
    step<Wide, Tall>(a + k, lower + k, stride * 2, panel + k * kTiles.width);
  if (whole < depth) {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(a + r * stride + whole, depth - whole, rest.left[r]);
    written();
    step<Wide, Tall>(rest.left[0], rest.left[kSide], sizeof rest.left[0], rest.panel);
  }
  _tile_stored(0, out, to);
  if constexpr (Wide) _tile_stored(1, out + kSide, to);
  if constexpr (Tall) _tile_stored(2, out + kSide * out_stride, to);
  if constexpr (Wide && Tall) _tile_stored(3, out + kSide * out_stride + kSide, to);
}

}  // namespace

PLIANT_AMX void multiply_tiles(float* out, int64_t out_stride, const float* start, int64_t start_stride,
                               const BFloat16* a, int64_t stride, const BFloat16* panel, int64_t rows, int64_t depth,
                               int64_t width) {
  Rest rest;
  const int64_t whole = depth / (2 * kSide) * 2 * kSide;
  if (whole < depth) {
    std::fill_n(&rest.left[0][0], sizeof rest.left / 2, BFloat16(0.0f));
    std::fill_n(&rest.panel[0][0], sizeof rest.panel / 2, BFloat16(0.0f));
    std::copy_n(panel + whole * kTiles.width, cells<BFloat16>(depth - whole) * 2 * kTiles.width, &rest.panel[0][0]);
  }
  alignas(64) float edge[kTiles.rows * kTiles.width];
  int64_t configured = 0;
  for (int64_t i = 0; i < rows; i += kTiles.rows) {
    const int64_t n = std::min(kTiles.rows, rows - i);
    if (n != configured) {
      const Configuration tiles(std::min(n, kSide), n - kSide);
      written();
      _tile_loadconfig(&tiles);
      configured = n;
    }
    const float* from = start + i * start_stride;
    float* to = out + i * out_stride;
    int64_t from_stride = start_stride, to_stride = out_stride;
    const bool inside = width == kSide || width == kTiles.width;
    if (!inside) {
      for (int64_t r = 0; r < n; ++r) {
        std::copy_n(from + r * start_stride, width, edge + r * kTiles.width);
        std::fill(edge + r * kTiles.width + width, edge + (r + 1) * kTiles.width, 0.0f);
      }
      from = to = edge;
      from_stride = to_stride = kTiles.width;
    }
    written();
    if (width <= kSide && n <= kSide)
      block<false, false>(to, to_stride, from, from_stride, a + i * stride, stride, panel, n, depth, rest);
    else if (width <= kSide)
      block<false, true>(to, to_stride, from, from_stride, a + i * stride, stride, panel, n, depth, rest);
    else if (n <= kSide)
      block<true, false>(to, to_stride, from, from_stride, a + i * stride, stride, panel, n, depth, rest);
    else
      block<true, true>(to, to_stride, from, from_stride, a + i * stride, stride, panel, n, depth, rest);
    written();
    if (!inside)
      for (int64_t r = 0; r < n; ++r) std::copy_n(edge + r * kTiles.width, width, out + (i + r) * out_stride);
  }
  _tile_release();
}

}  // namespace pliant

#else

namespace pliant {

bool has_tiles() {
  return false;
}
void multiply_tiles(float*, int64_t, const float*, int64_t, const BFloat16*, int64_t, const BFloat16*, int64_t, int64_t,
                    int64_t) {}

}  // namespace pliant
#endif
