// How work is shared among torch's own threads. What runs on them must not throw.
#pragma once

#include "abi.h"

namespace pliant {

// How many pieces of at most `most`, at least one.
inline int64_t pieces(int64_t all, int64_t most) { return std::max<int64_t>((all + most - 1) / most, 1); }

// Run f(begin, end) on torch's threads, on at least `grain` of the range each.
template <class F>
void parallel(int64_t count, int64_t grain, F&& f) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), f);
}

// Run f(i) for every i, each of which may call a matrix product. The range has two pieces at least: a single piece
// would run outside the pool, where the product takes all threads and adds in another order than it does beside other
// pieces.
template <class F>
void parallel_products(int64_t count, F&& f) {
  parallel(std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, count); ++i) f(i);
  });
}

// A lane is one thread's share of the work, with memory of its own that is allocated before the parallel loop. This is
// how many lanes `count` items deserve: one per thread, at least one.
inline int64_t lanes_for(int64_t count) {
  return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(count, 1));
}

// Run f(lane, begin, end) for every lane, which takes items [begin, end): as many as the others or one more.
template <class F>
void for_lanes(int64_t lanes, int64_t count, F&& f) {
  parallel(lanes, 1, [&](int64_t first, int64_t last) {
    for (int64_t lane = first; lane < last; ++lane) f(lane, count * lane / lanes, count * (lane + 1) / lanes);
  });
}

}  // namespace pliant
