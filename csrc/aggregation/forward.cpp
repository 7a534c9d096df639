// Forward, for all operators of the family.
#include "problem.h"

namespace pliant {
namespace {

// One thread's samples, and the head that they lie in.
template <class T>
struct Share {
  Tile<typename Work<T>::type> tile;
  Heads<T> heads;

  Share(const Problem& s, const T* map, bool dense) : tile(s), heads(s, map, dense) {}
};

}  // namespace

void aggregate_all(const Problem& s, const Tensor& map, Tensor& output) {
  dispatch(map.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* const data = static_cast<const T*>(map.const_data_ptr());
    T* const out = static_cast<T*>(output.mutable_data_ptr());
    const int64_t row = s.M * s.D, tiles = s.tiles(), count = s.N * s.M * tiles, lanes = lanes_for(count);
    const std::vector<T> zeros(s.D, T(0));
    std::vector<Share<T>> memory;
    memory.reserve(lanes);
    for (int64_t lane = 0; lane < lanes; ++lane) memory.emplace_back(s, data, s.dense(lanes));
    // Head after head: the pixels of one are read while they are in the cache.
    for_lanes(lanes, count, [&](int64_t lane, int64_t begin, int64_t end) {
      auto& [tile, heads] = memory[lane];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / tiles / s.M, m = i / tiles % s.M, q0 = i % tiles * s.tile();
        const int64_t queries = std::min(s.tile(), s.Q - q0);
        tile.set(n, m, q0, queries);
        const Corners<T> corners = tile.point_to(heads.of(n, m), zeros.data(), queries);
        aggregate(out + (n * s.Q + q0) * row + m * s.D, row, tile.placed(), corners, s.D, s.K, queries);
      }
    });
  });
}

}  // namespace pliant
