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

// The map as A, a type of sums or BFloat16, channels-last and dense: the tensor's own memory where it is that already,
// else one converted copy. Where channels take turns in groups (position-sensitive maps), channel c·groups + q becomes
// q·(C/groups) + c: those of one turn lie side by side.
template <class A>
struct Map {
  const A* data;
  Buffer<A> copy;

  explicit Map(const Tensor& t, int64_t groups = 1) {
    const int64_t N = t.size(0), C = t.size(1), W = t.size(3), HW = t.size(2) * W, each = C / groups;
    const bool dense = t.stride(1) == 1 && t.stride(3) == C && t.stride(2) == W * C && t.stride(0) == HW * C;
    if (dense && groups == 1 && int32_t(t.scalar_type()) == kScalarType<A>) {
      data = static_cast<const A*>(t.const_data_ptr());
      return;
    }
    copy = Buffer<A>(N * HW * C);
    data = copy.get();
    const Planes planes(t);
    // Long runs of each plane: short ones meet a new page of memory every time.
    constexpr int64_t kRun = 4 * kBlock;
    const int64_t runs = (HW + kRun - 1) / kRun;
    parallel(N * runs, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / runs, p = i % runs * kRun, count = std::min(kRun, HW - p);
        A block[kBlock * kRun];
        for (int64_t c = 0; c < C; c += kBlock) {
          const int64_t channels = std::min(kBlock, C - c);
          for (int64_t r = 0; r < channels; ++r) {
            const int64_t from = groups == 1 ? c + r : (c + r) % each * groups + (c + r) / each;
            planes.read(n, from, W, p, count, block + r * kRun);
          }
          for (int64_t q = 0; q < count; q += kBlock)
            transpose(copy.get() + (n * HW + p + q) * C + c, C, block + q, kRun, std::min(kBlock, count - q), channels);
        }
      }
    });
  }
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
