// The inner loops of the packed product, written once over the number of lanes. multiply.cpp includes this file once
// per instruction level, because vectors are lowered to the registers of the function that they are written in:
// PLIANT_TARGET is the level, and vectors wider than its registers take several. PLIANT_BFLOAT16 is 1 where the level
// multiplies pairs of bfloat16.

template <int Lanes>
struct Vectors {
  typedef float Floats __attribute__((vector_size(4 * Lanes)));
  typedef uint32_t Cells __attribute__((vector_size(4 * Lanes)));
};
template <int Lanes>
using Floats = typename Vectors<Lanes>::Floats;
template <int Lanes>
using Cells = typename Vectors<Lanes>::Cells;

template <class Vector>
PLIANT_TARGET PLIANT_INLINE Vector load(const void* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// sum + x·b for one cell x and the cells b.
template <int Lanes>
PLIANT_TARGET PLIANT_INLINE Floats<Lanes> add_product(Floats<Lanes> sum, float x, Floats<Lanes> b) {
  return sum + x * b;
}
template <int Lanes>
PLIANT_TARGET PLIANT_INLINE Floats<Lanes> add_product(Floats<Lanes> sum, uint32_t x, Cells<Lanes> b) {
#if PLIANT_BFLOAT16
  if constexpr (Lanes == 16) return (Floats<16>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(x + Cells<16>{}), (__m512bh)b);
#endif
  const Cells<Lanes> xs = x + Cells<Lanes>{};
  sum += (Floats<Lanes>)(xs & 0xffff0000u) * (Floats<Lanes>)(b & 0xffff0000u);
  return sum + (Floats<Lanes>)(xs << 16) * (Floats<Lanes>)(b << 16);
}

// The cell at k and, for bfloat16, the last half of one.
PLIANT_TARGET PLIANT_INLINE float cell(const float* from) {
  return *from;
}
PLIANT_TARGET PLIANT_INLINE uint32_t cell(const BFloat16* from) {
  uint32_t pair;
  __builtin_memcpy(&pair, from, sizeof pair);
  return pair;
}
PLIANT_TARGET PLIANT_INLINE float half_cell(const float*) {
  return 0;
}
PLIANT_TARGET PLIANT_INLINE uint32_t half_cell(const BFloat16* from) {
  return from->x;
}

// out[r][:] = start[r][:] + Σ_k a[r][k]·panel[k][:] for `Rows` rows and `Count` vectors of the panel.
template <int Lanes, int Rows, int Count, class V>
PLIANT_TARGET PLIANT_INLINE void block(float* out, int64_t out_stride, const float* start, int64_t start_stride,
                                       const V* a, int64_t stride, const V* panel, int64_t depth) {
  using B = std::conditional_t<std::is_same_v<V, float>, Floats<Lanes>, Cells<Lanes>>;
  Floats<Lanes> sum[Rows][Count];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) sum[r][v] = load<Floats<Lanes>>(start + r * start_stride + Lanes * v);
  const auto step = [&](auto cell_of) PLIANT_TARGET __attribute__((always_inline)) {
    B b[Count];
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) b[v] = load<B>(panel + Lanes * kCell<V> * v);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const auto x = cell_of(a + r * stride);
#pragma GCC unroll 2
      for (int v = 0; v < Count; ++v) sum[r][v] = add_product<Lanes>(sum[r][v], x, b[v]);
    }
    panel += 2 * Lanes * kCell<V>;
    a += kCell<V>;
  };
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth / kCell<V>; ++k)
    step([](const V* from) PLIANT_TARGET __attribute__((always_inline)) { return cell(from); });
  if (depth % kCell<V>)
    step([](const V* from) PLIANT_TARGET __attribute__((always_inline)) { return half_cell(from); });
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Count; ++v) __builtin_memcpy(out + r * out_stride + Lanes * v, &sum[r][v], 4 * Lanes);
}

// The same for a number of rows that is not known at compile time, at most `Rows`.
template <int Lanes, int Count, int Rows, class V>
PLIANT_TARGET PLIANT_INLINE void rows_left(int64_t rows, float* out, int64_t out_stride, const float* start,
                                           int64_t start_stride, const V* a, int64_t stride, const V* panel,
                                           int64_t depth) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return block<Lanes, Rows, Count>(out, out_stride, start, start_stride, a, stride, panel, depth);
    rows_left<Lanes, Count, Rows - 1>(rows, out, out_stride, start, start_stride, a, stride, panel, depth);
  }
}

template <int Lanes, class V>
PLIANT_TARGET void multiply(float* out, int64_t out_stride, const float* start, int64_t start_stride, const V* a,
                            int64_t stride, const V* panel, int64_t rows, int64_t depth, int64_t width) {
  constexpr int64_t kRows = Lanes == 8 ? kEight.rows : kSixteen.rows, kWidth = 2 * Lanes;
  const int64_t lines = cells<V>(depth) * kWidth / 16;
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t n = std::min(kRows, rows - i);
    const float* const from = start + i * start_stride;
    const V* const left = a + i * stride;
    float* const to = out + i * out_stride;
    // Fetch the next panel from level-3 cache meanwhile, a cache line after the other.
    for (int64_t line = lines * i / rows; line < lines * (i + n) / rows; ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(panel) + 64 * (lines + line), 0, 2);
    if (width == kWidth) {
      rows_left<Lanes, 2, kRows>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else if (width == Lanes) {
      rows_left<Lanes, 1, kRows>(n, to, out_stride, from, start_stride, left, stride, panel, depth);
    } else {
      float edge[kRows * kWidth] = {};
      for (int64_t r = 0; r < n; ++r) std::copy_n(from + r * start_stride, width, edge + r * kWidth);
      if (width < Lanes)
        rows_left<Lanes, 1, kRows>(n, edge, kWidth, edge, kWidth, left, stride, panel, depth);
      else
        rows_left<Lanes, 2, kRows>(n, edge, kWidth, edge, kWidth, left, stride, panel, depth);
      for (int64_t r = 0; r < n; ++r) std::copy_n(edge + r * kWidth, width, to + r * out_stride);
    }
  }
}
