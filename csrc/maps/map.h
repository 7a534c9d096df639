// Maps in the form that kernels read: channels-last and dense, in a type of sums or in bfloat16.
#pragma once

#include "../memory.h"
#include "../threads.h"
#include "planes.h"
#include "transpose.h"

namespace pliant {

// Images of a map as A: the tensor's own memory where that is channels-last, dense and of type A, else a converted
// copy. With `groups`, channels are interleaved (position-sensitive maps): channel c·groups + q of the tensor becomes
// q·(C/groups) + c, so that the channels of one group are adjacent.
template <class A>
class Map {
 public:
  const A* data;  // the images that were read

  // Read all images.
  explicit Map(const Tensor& t, int64_t groups = 1) : Map(t, groups, t.size(0)) { read(0, t.size(0)); }

  // Room for `images` images at a time; none is read yet.
  Map(const Tensor& t, int64_t groups, int64_t images)
      : planes_(t), C_(t.size(1)), W_(t.size(3)), HW_(t.size(2) * W_), groups_(groups) {
    const bool dense = planes_.c == 1 && planes_.w == C_ && planes_.h == W_ * C_ && planes_.n == HW_ * C_;
    if (!dense || groups != 1 || t.scalar_type() != kScalarType<A>) copy_ = Buffer<A>(images * HW_ * C_);
    data = copy_ ? copy_.get() : static_cast<const A*>(planes_.data);
  }

  // Let `data` hold images [first, first + count).
  void read(int64_t first, int64_t count) {
    if (!copy_) {
      data = static_cast<const A*>(planes_.data) + first * HW_ * C_;
      return;
    }
    const int64_t runs = (HW_ + kRun - 1) / kRun;
    parallel(count * runs, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) read_run(first, i / runs, i % runs * kRun);
    });
  }

 private:
  // Positions that are read at a time. Runs are long because the next channel's lies in another page of memory.
  static constexpr int64_t kRun = 4 * kBlock;

  // Copy the run of positions from p on of image first + n.
  void read_run(int64_t first, int64_t n, int64_t p) const {
    const int64_t length = std::min(kRun, HW_ - p), each = C_ / groups_;
    A block[kBlock * kRun];
    for (int64_t c = 0; c < C_; c += kBlock) {
      const int64_t channels = std::min(kBlock, C_ - c);
      for (int64_t r = 0; r < channels; ++r) {
        const int64_t from = groups_ == 1 ? c + r : (c + r) % each * groups_ + (c + r) / each;
        planes_.read(first + n, from, W_, p, length, block + r * kRun);
      }
      transpose(copy_.get() + (n * HW_ + p) * C_ + c, C_, block, kRun, length, channels);
    }
  }

  Planes planes_;
  int64_t C_, W_, HW_, groups_;
  Buffer<A> copy_;
};

}  // namespace pliant
