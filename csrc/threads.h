// Parallel loops on torch's own threads. Code that runs there must not throw.
#pragma once

#include "abi.h"

namespace pliant {

// Number of pieces that `all` items make, of at most `most` items each; at least one.
inline int64_t pieces(int64_t all, int64_t most) { return std::max<int64_t>((all + most - 1) / most, 1); }

// Run f(begin, end) on torch's threads, for ranges of at least `grain` items.
template <class F>
void parallel(int64_t count, int64_t grain, F&& f) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), f);
}

// Run f(i) for every i < count, where f calls matrix products. The range is split in two at least: a single piece would
// run outside the thread pool, where a product takes all threads and adds in a different order than inside.
template <class F>
void parallel_products(int64_t count, F&& f) {
  parallel(std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, count); ++i) f(i);
  });
}

// A lane is one thread's share of the work, with scratch memory of its own. There are as many as threads, at most one
// per item, and at least one.
inline int64_t lanes_for(int64_t count) {
  return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(count, 1));
}

// Run f(lane, begin, end) for every lane, which takes items [begin, end); ranges differ by one item at most.
template <class F>
void for_lanes(int64_t lanes, int64_t count, F&& f) {
  parallel(lanes, 1, [&](int64_t first, int64_t last) {
    for (int64_t lane = first; lane < last; ++lane) f(lane, count * lane / lanes, count * (lane + 1) / lanes);
  });
}

}  // namespace pliant
