// The weight in the order of columns: [O][K][C/g], so that each convolution group is one matrix; depthwise [K][C].
#pragma once

#include "../maps/planes.h"
#include "../maps/transpose.h"
#include "../memory.h"
#include "../threads.h"
#include "shape.h"

namespace pliant {

// A channels_last weight of type A is used in place, any other is copied.
template <class A>
class Weights {
 public:
  Weights(const Tensor& t, const ConvShape& s) : s_(s), from_(t) {
    if (from_.type == kScalarType<A> && !s.depthwise && from_.w == s.Cg && from_.h == s.Kw * s.Cg &&
        from_.n == s.K * s.Cg && (from_.c == 1 || s.Cg == 1))
      data_ = static_cast<const A*>(from_.data);
  }

  // The whole weight.
  const A* data() {
    if (data_) return data_;
    copy_ = Buffer<A>(s_.O * s_.K * s_.Cg);
    parallel(s_.O, 16, [&](int64_t begin, int64_t end) { order(copy_.get(), 0, begin, end); });
    return data_ = copy_.get();
  }

  // Filters [first, first + count), in place or copied to `room`.
  const A* filters(int64_t first, int64_t count, A* room) const {
    if (data_) return data_ + first * s_.K * s_.Cg;
    order(room, first, first, first + count);
    return room;
  }

 private:
  // Write filters [begin, end) to `to`, whose first filter is `zero`.
  void order(A* to, int64_t zero, int64_t begin, int64_t end) const {
    const ConvShape& s = s_;
    const Planes& f = from_;
    const int64_t so = s.depthwise ? 1 : s.K * s.Cg, sk = s.depthwise ? s.C : s.Cg;
    dispatch(f.type, [&](auto element) {
      const auto* in = static_cast<const decltype(element)*>(f.data);
      for (int64_t o = begin; o < end; ++o) {
        A* const filter = to + (o - zero) * so;
        if (!s.depthwise && f.w == 1 && f.h == s.Kw && f.c == s.K) {
          for (int64_t c = 0; c < s.Cg; c += kBlock)
            transpose_block(filter + c, sk, in + o * f.n + c * s.K, s.K, s.K, std::min(kBlock, s.Cg - c));
          continue;
        }
        for (int64_t k = 0; k < s.K; ++k)
          for (int64_t c = 0; c < s.Cg; ++c)
            filter[k * sk + c] = A(in[o * f.n + c * f.c + k / s.Kw * f.h + k % s.Kw * f.w]);
      }
    });
  }

  const ConvShape& s_;
  Planes from_;
  const A* data_ = nullptr;
  Buffer<A> copy_;
};

}  // namespace pliant
