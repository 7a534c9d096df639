// Maps in the form the kernels want, channels-last and dense in float or double: read from any tensor, written to one.
#pragma once

#include "aten.h"

namespace pliant {

inline Tensor empty_map(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool last) {
  const int64_t sizes[] = {N, C, H, W};
  return torch::stable::empty(
      {sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

// Images of a map as A, a type of sums or BFloat16, channels-last and dense: the tensor's own memory where it is that
// already, else a converted copy. Where channels take turns in groups (position-sensitive maps), channel c·groups + q
// becomes q·(C/groups) + c: those of one turn lie side by side.
template <class A>
class Map {
 public:
  const A* data;  // the images that are read

  // All images, read.
  explicit Map(const Tensor& t, int64_t groups = 1) : Map(t, groups, t.size(0)) { read(0, t.size(0)); }

  // Room for some images at a time; none is read yet.
  Map(const Tensor& t, int64_t groups, int64_t images)
      : planes_(t), C_(t.size(1)), W_(t.size(3)), HW_(t.size(2) * W_), groups_(groups) {
    const bool dense = planes_.c == 1 && planes_.w == C_ && planes_.h == W_ * C_ && planes_.n == HW_ * C_;
    if (!dense || groups != 1 || int32_t(t.scalar_type()) != kScalarType<A>) copy_ = Buffer<A>(images * HW_ * C_);
    data = copy_ ? copy_.get() : static_cast<const A*>(planes_.data);
  }

  // From here on these images.
  void read(int64_t first, int64_t count) {
    if (!copy_) {
      data = static_cast<const A*>(planes_.data) + first * HW_ * C_;
      return;
    }
    // Long runs of each plane: short ones meet a new page of memory every time.
    constexpr int64_t kRun = 4 * kBlock;
    const int64_t runs = (HW_ + kRun - 1) / kRun, each = C_ / groups_;
    parallel(count * runs, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / runs, p = i % runs * kRun, length = std::min(kRun, HW_ - p);
        A block[kBlock * kRun];
        for (int64_t c = 0; c < C_; c += kBlock) {
          const int64_t channels = std::min(kBlock, C_ - c);
          for (int64_t r = 0; r < channels; ++r) {
            const int64_t from = groups_ == 1 ? c + r : (c + r) % each * groups_ + (c + r) / each;
            planes_.read(first + n, from, W_, p, length, block + r * kRun);
          }
          for (int64_t q = 0; q < length; q += kBlock)
            transpose(copy_.get() + (n * HW_ + p + q) * C_ + c, C_, block + q, kRun, std::min(kBlock, length - q),
                      channels);
        }
      }
    });
  }

 private:
  Planes planes_;
  int64_t C_, W_, HW_, groups_;
  Buffer<A> copy_;
};

// The other way: channels-last values into dense memory of T in either format.
template <class T, class A>
void write_map(T* to, const A* from, int64_t N, int64_t C, int64_t HW, bool last, int64_t groups = 1) {
  const int64_t blocks = (HW + kBlock - 1) / kBlock, each = C / groups;
  parallel(N * blocks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / blocks, p = i % blocks * kBlock, count = std::min(kBlock, HW - p);
      const A* in = from + (n * HW + p) * C;
      if (last && groups == 1) {
        T* row = to + (n * HW + p) * C;
        for (int64_t at = 0; at < count * C; ++at) row[at] = T(in[at]);
        continue;
      }
      for (int64_t q = 0; q < groups; ++q, in += each) {
        if (last) {
          T* row = to + (n * HW + p) * C + q;
          for (int64_t at = 0; at < count; ++at)
            for (int64_t c = 0; c < each; ++c) row[at * C + c * groups] = T(in[at * C + c]);
        } else {
          for (int64_t c = 0; c < each; c += kBlock)
            transpose(to + (n * C + c * groups + q) * HW + p, groups * HW, in + c, C, std::min(kBlock, each - c),
                      count);
        }
      }
    }
  });
}

}  // namespace pliant
