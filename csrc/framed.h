// Maps of at most four channels, an image's: every pixel four wide, the map in a frame, so that all corners of every
// sample are there. One index finds them, no test, and every one is a vector.
#pragma once

#include "aten.h"
#include "sampling.h"

namespace pliant {

inline constexpr int64_t kFew = 4;

template <class A>
struct Lanes {
  typedef A Four __attribute__((vector_size(kFew * sizeof(A))));
};
template <class A>
using Four = typename Lanes<A>::Four;

// A map's values, or sums of their gradients, between two rows above, one below and a column on each side. What is no
// sample has the upper left corner of that, zeros in all four pixels. See `locate`.
template <class A>
class Framed {
 public:
  // Room for some images at a time.
  Framed(int64_t images, int64_t C, int64_t H, int64_t W)
      : C_(C), H_(H), W_(W), row_((W + 2) * kFew), image_((H + 3) * row_), memory_(images * image_) {}

  // The n-th of those.
  A* image(int64_t n) const { return memory_.get() + n * image_; }
  // From a pixel to the one below.
  int64_t row() const { return row_; }

  void clear(int64_t count) const {
    rows(count, [&](A* to, int64_t, int64_t) { std::fill_n(to, row_, A(0)); });
  }

  // Fill with images of a map from `first` on; with boundary "clamp" the frame on the right and below repeats what it
  // touches.
  void read(const Planes& planes, int64_t first, int64_t count, bool clamp) const {
    rows(count, [&](A* to, int64_t n, int64_t y) {
      std::fill_n(to, row_, A(0));
      if (y < 0 || (y == H_ && !clamp)) return;
      for (int64_t c = 0; c < C_; ++c) planes.read(first + n, c, W_, std::min(y, H_ - 1) * W_, W_, to + kFew + c, kFew);
      if (clamp) std::copy_n(to + W_ * kFew, kFew, to + (W_ + 1) * kFew);
    });
  }

  // Write sums into dense memory of as many images; with boundary "clamp" what is in the frame belongs to what it
  // touches.
  template <class T>
  void write(T* out, int64_t count, bool last, bool clamp) const {
    rows(count, [&](A* from, int64_t n, int64_t y) {
      if (y < 0 || y == H_) return;
      if (clamp && y == H_ - 1)
        for (int64_t i = 0; i < row_; ++i) from[i] += from[row_ + i];
      if (clamp)
        for (int64_t c = 0; c < C_; ++c) from[W_ * kFew + c] += from[(W_ + 1) * kFew + c];
      const int64_t step = last ? C_ : 1, plane = last ? 1 : H_ * W_;
      for (int64_t c = 0; c < C_; ++c) {
        T* to = out + n * C_ * H_ * W_ + y * W_ * step + c * plane;
        for (int64_t x = 0; x < W_; ++x) to[x * step] = T(from[(x + 1) * kFew + c]);
      }
    });
  }

 private:
  template <class F>
  void rows(int64_t count, F&& f) const {
    const int64_t high = H_ + 3;
    parallel(count * high, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(memory_.get() + i * row_, i / high, i % high - 2);
    });
  }

  int64_t C_, H_, W_, row_, image_;
  Buffer<A> memory_;
};

template <class A, class V>
PLIANT_INLINE Four<A> four(const V* from) {
  if constexpr (std::is_same_v<A, V>) {
    Four<A> v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  } else {
    return Four<A>{A(from[0]), A(from[1]), A(from[2]), A(from[3])};
  }
}

template <class A, class V>
PLIANT_INLINE void put(V* to, Four<A> v) {
  if constexpr (std::is_same_v<A, V>)
    __builtin_memcpy(to, &v, sizeof v);
  else
    for (int i = 0; i < kFew; ++i) to[i] = narrow<V>(v[i]);
}

// columns[p][0..4) = mask·Σ_i weight_i·corner_i. The tap that comes next overwrites what is past the channels.
template <class A, class V>
PLIANT_INLINE void gather_framed_impl(V* columns, int64_t stride, const Samples<A>& samples, const A* map, int64_t row,
                                      int64_t count) {
  const Samples<A> at = samples;  // its pointers stay in registers
  for (int64_t p = 0; p < count; ++p) {
    const A* x = map + at.pixel[0][p] * kFew;
    const A* below = x + row;
    const Four<A> top = at.weight[0][p] * four<A>(x) + at.weight[1][p] * four<A>(x + kFew);
    const Four<A> bottom = at.weight[2][p] * four<A>(below) + at.weight[3][p] * four<A>(below + kFew);
    put<A>(columns + p * stride, at.mask[p] * (top + bottom));
  }
}

// The sums over each of four vectors.
template <class A>
PLIANT_INLINE Four<A> lane_sums(Four<A> a, Four<A> b, Four<A> c, Four<A> d) {
#ifdef PLIANT_SHUFFLES
  const Four<A> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four<A> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
  return Four<A>{a[0] + a[1] + a[2] + a[3], b[0] + b[1] + b[2] + b[3], c[0] + c[1] + c[2] + c[3],
                 d[0] + d[1] + d[2] + d[3]};
#endif
}

// dots[i][p] = Σ_c grad[p][c]·corner_i[c], four samples at a time.
template <class A, class V>
PLIANT_INLINE void dots_framed_impl(A* const dots[4], const V* grad, int64_t stride, const Samples<A>& samples,
                                    const A* map, int64_t row, int64_t channels, int64_t count) {
  const int64_t* const pixel = samples.pixel[0];
  A* const out[4] = {dots[0], dots[1], dots[2], dots[3]};
  const int64_t corner[4] = {0, kFew, row, row + kFew};
  of_width(channels, [&](auto n) __attribute__((always_inline)) {
    // What is past the channels is another tap's, or nothing at all.
    auto gradient = [&](int64_t p) __attribute__((always_inline)) {
      Four<A> g = four<A>(grad + p * stride);
      for (int64_t c = n; c < kFew; ++c) g[c] = 0;
      return g;
    };
    int64_t p = 0;
    for (; p + 4 <= count; p += 4) {
      const Four<A> g0 = gradient(p), g1 = gradient(p + 1), g2 = gradient(p + 2), g3 = gradient(p + 3);
      const A *x0 = map + pixel[p] * kFew, *x1 = map + pixel[p + 1] * kFew, *x2 = map + pixel[p + 2] * kFew,
              *x3 = map + pixel[p + 3] * kFew;
      for (int i = 0; i < 4; ++i)
        put<A>(out[i] + p, lane_sums<A>(g0 * four<A>(x0 + corner[i]), g1 * four<A>(x1 + corner[i]),
                                        g2 * four<A>(x2 + corner[i]), g3 * four<A>(x3 + corner[i])));
    }
    for (; p < count; ++p) {
      const Four<A> g = gradient(p);
      for (int i = 0; i < 4; ++i) {
        const Four<A> product = g * four<A>(map + pixel[p] * kFew + corner[i]);
        out[i][p] = product[0] + product[1] + product[2] + product[3];
      }
    }
  });
}

// map[corner_i][0..4) += mask·weight_i·grad[p][0..4). Nobody asks for sums past the channels.
template <class A, class V>
PLIANT_INLINE void scatter_framed_impl(A* map, const V* grad, int64_t stride, const Samples<A>& samples, int64_t row,
                                       int64_t count) {
  const Samples<A> at = samples;
  for (int64_t p = 0; p < count; ++p) {
    const Four<A> g = at.mask[p] * four<A>(grad + p * stride);
    A* const x = map + at.pixel[0][p] * kFew;
    A* const corner[4] = {x, x + kFew, x + row, x + row + kFew};
    for (int i = 0; i < 4; ++i) put<A>(corner[i], four<A>(corner[i]) + at.weight[i][p] * g);
  }
}

#define PLIANT_FRAMED(A, V)                                                                                            \
  [[maybe_unused]] PLIANT_CLONES static void gather(V* o, int64_t s, const Samples<A>& at, const A* x, int64_t row,    \
                                                    int64_t p) {                                                       \
    gather_framed_impl(o, s, at, x, row, p);                                                                           \
  }                                                                                                                    \
  [[maybe_unused]] PLIANT_CLONES static void dots(A* const d[4], const V* g, int64_t s, const Samples<A>& at,          \
                                                  const A* x, int64_t row, int64_t n, int64_t p) {                     \
    dots_framed_impl(d, g, s, at, x, row, n, p);                                                                       \
  }                                                                                                                    \
  [[maybe_unused]] PLIANT_CLONES static void scatter(A* o, const V* g, int64_t s, const Samples<A>& at, int64_t row,   \
                                                     int64_t p) {                                                      \
    scatter_framed_impl(o, g, s, at, row, p);                                                                          \
  }
PLIANT_FRAMED(float, float)
PLIANT_FRAMED(double, double)
PLIANT_FRAMED(float, BFloat16)
#undef PLIANT_FRAMED

}  // namespace pliant
