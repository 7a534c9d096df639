// Backward, for all operators of the family.
#include "channels.h"
#include "problem.h"

namespace pliant {
namespace {

// One thread's share: samples, the head that they lie in, the gradient of the output, and those of samples and pixels.
template <class T>
struct Share {
  using A = typename Work<T>::type;

  Tile<A> tile;
  Heads<T> heads;
  Arena arena;
  A *grad, *factor, *x, *y;
  Buffer<A> pixels;

  Share(const Problem& s, const T* map, bool dense, int64_t band) : tile(s), heads(s, map, dense), pixels(band * s.D) {
    arena.reserve(grad, std::is_same_v<T, A> ? 0 : s.tile() * s.D);
    for (auto* array : {&factor, &x, &y}) arena.reserve(*array, s.tile() * s.K);
    arena.allocate();
  }
};

// Cut the pixels of an image into bands that about as many samples fall into; returns where each begins, and the end.
std::vector<int64_t> cut(const Problem& s, int64_t bands) {
  std::vector<double> begins(s.S + 1, 0);
  for (int64_t k = 0; k < s.K; ++k) {
    const int64_t size = int64_t(s.rows[k]) * s.columns[k];
    for (int64_t p = 0; p < size; ++p) begins[s.first[k] + p + 1] += 1.0 / double(size);
  }
  std::vector<int64_t> found{0};
  double sum = 0;
  for (int64_t p = 0; p < s.S; ++p) {
    sum += begins[p + 1];
    if (sum * double(bands) >= double(s.K) * double(found.size()) && int64_t(found.size()) < bands)
      found.push_back(p + 1);
  }
  found.resize(bands, s.S);
  found.push_back(s.S);
  return found;
}

template <class T>
class Derivative {
  using A = typename Work<T>::type;

 public:
  Derivative(const Problem& s, const Tensor& map, const Tensor& grad, const Sink& map_grad, const Sink& places,
             const Sink& factors)
      : s(s),
        row(s.M * s.D),
        grad_row(kDirect ? row : s.D),
        map(static_cast<const T*>(map.const_data_ptr())),
        grad(static_cast<const T*>(grad.const_data_ptr())),
        map_grad(static_cast<T*>(map_grad.data)),
        places(places),
        factors(factors),
        zeros(s.D, T(0)) {}

  void run() {
    const int64_t heads = s.N * s.M, threads = lanes_for(heads * std::max<int64_t>(s.tiles(), 1));
    const bool samples = places.data || factors.data;
    // One pass where heads are as many as threads: samples are placed once. Else one over tiles, for the gradients of
    // samples, and one over bands of pixels. Every pixel's sum is added in the order of the queries in any case.
    const int64_t bands = map_grad ? pieces(threads, std::max<int64_t>(heads, 1)) : 0;
    if (map_grad && (bands == 1 || !samples)) {
      each_band(bands, bands == 1 && samples);
      return;
    }
    if (samples) each_tile(threads);
    if (map_grad) each_band(bands, false);
  }

 private:
  void each_tile(int64_t lanes) {
    const int64_t tiles = s.tiles();
    std::vector<Share<T>> memory = shares(lanes, s.dense(lanes), 0);
    for_lanes(lanes, s.N * s.M * tiles, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / tiles / s.M, m = i / tiles % s.M, q0 = i % tiles * s.tile();
        differentiate_samples(memory[lane], n, m, q0, read(memory[lane], n, m, q0));
      }
    });
  }

  void each_band(int64_t bands, bool samples) {
    const std::vector<int64_t> begins = bands > 1 ? cut(s, bands) : std::vector<int64_t>{0, s.S};
    int64_t largest = 0;
    for (int64_t b = 0; b < bands; ++b) largest = std::max(largest, begins[b + 1] - begins[b]);
    const int64_t count = s.N * s.M * bands, lanes = lanes_for(count);
    const bool dense = s.dense(lanes), direct = kDirect && !dense;
    std::vector<Share<T>> memory = shares(lanes, samples && dense, direct ? 0 : largest);
    if (direct)
      parallel(s.N * s.S * row, int64_t(1) << 16,
               [&](int64_t begin, int64_t end) { std::fill(map_grad + begin, map_grad + end, T(0)); });
    for_lanes(lanes, count, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / bands / s.M, m = i / bands % s.M, low = begins[i % bands], high = begins[i % bands + 1];
        differentiate_band(memory[lane], n, m, low, high, samples, direct);
      }
    });
  }

  std::vector<Share<T>> shares(int64_t lanes, bool dense, int64_t band) {
    std::vector<Share<T>> memory;
    memory.reserve(lanes);
    for (int64_t lane = 0; lane < lanes; ++lane) memory.emplace_back(s, map, dense, band);
    return memory;
  }

  // Read the samples of a tile; returns the number of queries.
  int64_t read(Share<T>& share, int64_t n, int64_t m, int64_t q0) {
    const int64_t queries = std::min(s.tile(), s.Q - q0);
    share.tile.set(n, m, q0, queries);
    return queries;
  }

  // The gradient of a tile of the output, whose rows are `kDirect ? row : D` values apart.
  const A* read_grad(Share<T>& share, int64_t n, int64_t m, int64_t q0, int64_t queries) {
    const T* const from = grad + (n * s.Q + q0) * row + m * s.D;
    fetch_rows(from + queries * row, row, s.D, std::min(queries, s.Q - q0 - queries));
    if constexpr (kDirect)
      return from;
    else
      return take(share.grad, from, row, s.D, queries), share.grad;
  }

  void differentiate_samples(Share<T>& share, int64_t n, int64_t m, int64_t q0, int64_t queries) {
    const Asked<A>& asked = share.tile.asked();
    const Corners<T> corners = share.tile.point_to(share.heads.of(n, m), zeros.data(), queries);
    slopes(share.factor, share.x, share.y, read_grad(share, n, m, q0, queries), grad_row, share.tile.placed(),
           asked.factor, corners, s.D, s.K, queries);
    if (s.discrete) {
      std::fill_n(share.x, queries * s.K, A(0));
      std::fill_n(share.y, queries * s.K, A(0));
    }
    with_type(places, [&](auto* to) {
      give(to + s.places.at(n, m, q0), share.x, share.y, asked.scale_x, asked.scale_y, s.places.query, s.K, queries);
    });
    with_type(factors,
              [&](auto* to) { give(to + s.factors.at(n, m, q0), share.factor, s.factors.query, s.K, queries); });
  }

  // Add the gradients of pixels [low, high) of one head, in the result itself if `direct`, and with `samples` write
  // those of its samples.
  void differentiate_band(Share<T>& share, int64_t n, int64_t m, int64_t low, int64_t high, bool samples, bool direct) {
    T* const to = map_grad + n * s.S * row + m * s.D;
    A* sums = share.pixels.get() - low * s.D;
    if constexpr (kDirect)
      if (direct) sums = to;
    if (!direct) std::fill_n(share.pixels.get(), (high - low) * s.D, A(0));
    for (int64_t q0 = 0; q0 < s.Q; q0 += s.tile()) {
      const int64_t queries = read(share, n, m, q0);
      if (samples) differentiate_samples(share, n, m, q0, queries);
      spread(sums, direct ? row : s.D, read_grad(share, n, m, q0, queries), grad_row, share.tile.placed(), s.D, s.K,
             queries, int32_t(low), int32_t(high), direct);
    }
    if (direct) return;
    if constexpr (kDirect)
      copy(to + low * row, row, share.pixels.get(), s.D, s.D, high - low);
    else
      give(to + low * row, share.pixels.get(), row, s.D, high - low);
  }

  template <class F>
  void with_type(const Sink& sink, F&& f) {
    if (!sink.data) return;
    if constexpr (std::is_same_v<A, double>)
      f(static_cast<double*>(sink.data));
    else if (sink.type == ScalarType::Float)
      f(static_cast<float*>(sink.data));
    else if (sink.type == ScalarType::BFloat16)
      f(static_cast<BFloat16*>(sink.data));
    else
      f(static_cast<Half*>(sink.data));
  }

  // Whether sums can be added in the result itself.
  static constexpr bool kDirect = std::is_same_v<T, A>;

  const Problem& s;
  const int64_t row, grad_row;
  const T *map, *grad;
  T* map_grad;
  const Sink &places, &factors;
  const std::vector<T> zeros;
};

}  // namespace

void differentiate_all(const Problem& s, const Tensor& map, const Tensor& grad, const Sink& map_grad,
                       const Sink& places_grad, const Sink& factors_grad) {
  dispatch(map.scalar_type(),
           [&](auto zero) { Derivative<decltype(zero)>(s, map, grad, map_grad, places_grad, factors_grad).run(); });
}

}  // namespace pliant
