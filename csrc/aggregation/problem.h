// What the operators of the family have in common: queries whose samples are weighted and added, per head.
#pragma once

#include <vector>

#include "../memory.h"
#include "../threads.h"
#include "channels.h"

namespace pliant {

// Where numbers of a query and head stand in a tensor: from element `n·image + q·query + m·head + first` on.
struct Source {
  const void* data;
  ScalarType type;
  int64_t image, query, head, first = 0;

  int64_t at(int64_t n, int64_t m, int64_t q) const { return n * image + q * query + m * head + first; }
};

// Queries (N, Q) with K samples of D channels for each of M heads, in images of S pixels of M·D channels.
struct Problem {
  int64_t N, S, M, D, Q, K;
  Source places, factors;  // (x, y) of every sample, and its factor
  bool discrete = false;
  // Queries on a grid start at `query % width·step_x, query / width·step_y`; no grid: width 0.
  int64_t width = 0, step_x = 0, step_y = 0;
  // Per sample of a query: its pixel is start + scale·(x, y), in a level of `rows` × `columns` pixels from `first` on.
  std::vector<double> start_x, start_y, scale_x, scale_y;
  std::vector<int32_t> rows, columns, first;

  // Queries of a tile: their samples stay in the first cache.
  int64_t tile() const { return std::clamp<int64_t>(256 / std::max<int64_t>(K, 1), 1, std::max<int64_t>(Q, 1)); }
  int64_t tiles() const { return pieces(Q, tile()) * (Q > 0); }

  // Whether each of `lanes` threads should copy the heads that it reads: a pixel is read twice or more, and the copies
  // take no more memory than two maps. The sums are the same bits in either case.
  bool dense(int64_t lanes) const {
    const double heads = double(N) * double(M), reads = 4.0 * double(Q) * double(K) * heads;
    return M > 1 && double(lanes) <= 2 * heads && reads >= 2.0 * double(S) * (heads + double(lanes));
  }
};

// The D channels of one head, in pixels that are `row` values apart.
template <class T>
struct Head {
  const T* data;
  int64_t row;
  bool dense;  // row is D
};

// One thread's head. In the map the pixels of a head lie M·D values apart, so that they share few lines of the caches
// and many pages. Where they are read several times, they are first copied to where they lie side by side.
template <class T>
class Heads {
 public:
  Heads(const Problem& s, const T* map, bool dense) : s_(s), map_(map), copy_(dense ? s.S * s.D : 0), dense_(dense) {}

  // Head m of image n.
  Head<T> of(int64_t n, int64_t m) {
    const int64_t row = s_.M * s_.D;
    const T* const first = map_ + n * s_.S * row + m * s_.D;
    if (!dense_) return {first, row, false};
    if (copied_ != n * s_.M + m) copy(copy_.get(), s_.D, first, row, s_.D, s_.S);
    copied_ = n * s_.M + m;
    return {copy_.get(), s_.D, true};
  }

 private:
  const Problem& s_;
  const T* map_;
  Buffer<T> copy_;
  bool dense_;
  int64_t copied_ = -1;
};

// One thread's samples.
template <class A>
class Tile {
 public:
  explicit Tile(const Problem& s) : s_(s) {
    const int64_t count = s.tile() * s.K;
    for (auto* array : {&asked_.x, &asked_.y, &asked_.factor, &asked_.start_x, &asked_.start_y, &scale_x_, &scale_y_})
      arena_.reserve(*array, count);
    for (auto* array : {&rows_, &columns_, &first_}) arena_.reserve(*array, count);
    for (auto& pixel : placed_.pixel) arena_.reserve(pixel, count);
    for (auto& weight : placed_.weight) arena_.reserve(weight, count);
    for (auto* array : {&placed_.fx, &placed_.fy}) arena_.reserve(*array, count);
    for (auto& corner : corners_) arena_.reserve(corner, count);
    arena_.allocate();
    for (int64_t q = 0; q < s.tile(); ++q) {
      const int64_t at = q * s.K;
      std::copy(s.start_x.begin(), s.start_x.end(), asked_.start_x + at);
      std::copy(s.start_y.begin(), s.start_y.end(), asked_.start_y + at);
      std::copy(s.scale_x.begin(), s.scale_x.end(), scale_x_ + at);
      std::copy(s.scale_y.begin(), s.scale_y.end(), scale_y_ + at);
      std::copy(s.rows.begin(), s.rows.end(), rows_ + at);
      std::copy(s.columns.begin(), s.columns.end(), columns_ + at);
      std::copy(s.first.begin(), s.first.end(), first_ + at);
    }
    asked_.scale_x = scale_x_, asked_.scale_y = scale_y_;
    asked_.rows = rows_, asked_.columns = columns_, asked_.first = first_;
  }

  // Read and place the samples of queries [q0, q0 + queries) of head m of image n. What the next queries need lies
  // M times as far away as it is long, where no processor looks ahead by itself.
  void set(int64_t n, int64_t m, int64_t q0, int64_t queries) {
    const int64_t next = std::min(queries, s_.Q - q0 - queries);
    dispatch_beside(s_.places.type, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(s_.places.data) + s_.places.at(n, m, q0);
      take(asked_.x, asked_.y, from, s_.places.query, s_.K, queries);
      fetch_rows(from + queries * s_.places.query, s_.places.query, 2 * s_.K, next);
    });
    dispatch_beside(s_.factors.type, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(s_.factors.data) + s_.factors.at(n, m, q0);
      take(asked_.factor, from, s_.factors.query, s_.K, queries);
      fetch_rows(from + queries * s_.factors.query, s_.factors.query, s_.K, next);
    });
    if (s_.width > 0) start_on_grid(q0, queries);
    place(placed_, asked_, queries * s_.K, s_.discrete);
  }

  // Point to the corners of the tile's samples in a head, or in a row of zeros.
  template <class M>
  Corners<M> point_to(const Head<M>& head, const M* zeros, int64_t queries) const {
    Corners<M> found;
    for (int i = 0; i < 4; ++i) found.at[i] = reinterpret_cast<const M**>(corners_[i]);
    found.far = !head.dense;
    point(found, placed_.pixel, queries * s_.K, head.data, zeros, head.row);
    return found;
  }

  const Asked<A>& asked() const { return asked_; }
  const Placed<A>& placed() const { return placed_; }

 private:
  // Sums of double are for tensors of double alone.
  template <class F>
  static void dispatch_beside(ScalarType type, F&& f) {
    if constexpr (std::is_same_v<A, double>) {
      f(double{});
    } else {
      if (type == ScalarType::Float) return f(float{});
      if (type == ScalarType::BFloat16) return f(BFloat16{});
      f(Half{});
    }
  }

  void start_on_grid(int64_t q0, int64_t queries) {
    int64_t row = q0 / s_.width, column = q0 % s_.width, i = 0;
    for (int64_t q = 0; q < queries; ++q) {
      const A y = A(row * s_.step_y), x = A(column * s_.step_x);
      for (int64_t k = 0; k < s_.K; ++k, ++i) {
        asked_.start_x[i] = x + A(s_.start_x[k]);
        asked_.start_y[i] = y + A(s_.start_y[k]);
      }
      if (++column == s_.width) column = 0, ++row;
    }
  }

  const Problem& s_;
  Arena arena_;
  Asked<A> asked_;
  Placed<A> placed_;
  A *scale_x_, *scale_y_;
  int32_t *rows_, *columns_, *first_;
  const void** corners_[4];
};

// Write the output (N, Q, M·D) of a map (N, S, M, D); both are contiguous.
void aggregate_all(const Problem& s, const Tensor& map, Tensor& output);

// Where a gradient goes; nothing where it is not wanted.
struct Sink {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
};

// A new tensor, returned after huge pages were asked for.
inline Tensor in_huge_pages(const Tensor& result) {
  ask_for_huge_pages(result.mutable_data_ptr(), result.numel() * result.element_size());
  return result;
}

// An empty gradient of a tensor; without elements, in the dtype of the input, where it is not wanted.
inline Tensor gradient(const Tensor& of, bool wanted, const Tensor& input) {
  if (!wanted) return torch::stable::new_empty(input, {0});
  const auto sizes = of.sizes();
  return in_huge_pages(torch::stable::new_empty(of, {sizes.begin(), sizes.end()}));
}

inline Sink sink(const Tensor& gradient, bool wanted) {
  return {wanted ? gradient.mutable_data_ptr() : nullptr, gradient.scalar_type()};
}

// Write the gradients of the map, and of the samples' coordinates and factors, laid out like `places` and `factors`.
void differentiate_all(const Problem& s, const Tensor& map, const Tensor& grad, const Sink& map_grad,
                       const Sink& places_grad, const Sink& factors_grad);

}  // namespace pliant
