// Averages over the bins of RoIs: where a bin reads the map is found once, then all channels are added up in one pass.
#include "../isa.h"
#include "averages.h"

namespace pliant {
namespace {

// out[0..Width) = factor·Σ_rows Σ_columns weight·weight·map. The sums stay in registers: the empty statement keeps
// compilers from exchanging the loops.
template <int Width, class A>
PLIANT_INLINE void blend_block(A* __restrict out, const A* map, int64_t C, int64_t W, const Axis<A>& rows,
                               const Axis<A>& columns, A factor) {
  A sum[Width] = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const A* line = map + rows.index[i] * W * C;
    for (int64_t j = 0; j < columns.count; ++j) {
      const A* x = line + columns.index[j] * C;
      const A w = rows.weight[i] * columns.weight[j];
      asm volatile("");
#pragma omp simd
      for (int c = 0; c < Width; ++c) sum[c] += w * x[c];
    }
  }
#pragma omp simd
  for (int c = 0; c < Width; ++c) out[c] = factor * sum[c];
}

template <class A>
PLIANT_INLINE void blend_bin(A* out, const A* map, int64_t C, int64_t W, int64_t n, const Axis<A>& rows,
                             const Axis<A>& columns, A factor) {
  in_blocks<A>(n, [&](auto width, int64_t c) __attribute__((always_inline)) {
    blend_block<width.value>(out + c, map + c, C, W, rows, columns, factor);
  });
}

#define PLIANT_BLEND_BIN(A)                                                                                      \
  void blend(A* out, const A* map, int64_t C, int64_t W, int64_t n, const Axis<A>& rows, const Axis<A>& columns, \
             A factor)
PLIANT_KERNEL(PLIANT_BLEND_BIN, { blend_bin(out, map, C, W, n, rows, columns, factor); }, (float), (double))

// Average the bins of RoI r into `tile`, [bins][channels]. The tile goes to `result` later, which is fetched meanwhile,
// unless it is the tile itself.
template <class T, class A>
void average(const Pool& s, Walk<A>& walk, const Map<A>& map, int64_t r, A* tile, const T* result) {
  const int64_t outputs = s.outputs(), each = s.each();
  walk.each_bin(r, [&](const auto& bin) {
    const A* from = map.data + bin.image * s.H * s.W * s.C + bin.channel;
    const int64_t to = (bin.ph * s.Pw + bin.pw) * outputs + bin.k * each;
    blend(tile + to, from, s.C, s.W, each, bin.rows, bin.columns, bin.factor);
    if (static_cast<const void*>(tile) == result) return;
    for (int64_t i = 0; i < each; i += 64 / sizeof(T)) __builtin_prefetch(result + to + i, 1);
  });
}

Tensor forward(const Pool& s, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
               const std::optional<Tensor>& mask) {
  require_pool(s, input, rois, offset, mask);
  const bool last = channels_last(input);
  const int64_t outputs = s.outputs(), P = s.bins();
  Tensor output = empty_map(input, s.R, outputs, s.Ph, s.Pw, last);
  if (s.R == 0) return output;

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> map(input, s.groups());
    // Tiles are written to the output itself if that is their layout and type.
    const bool direct = std::is_same_v<T, A> && last;
    T* const out = static_cast<T*>(output.mutable_data_ptr());
    std::vector<PoolLane<A>> lanes(lanes_for(s.R));
    for (auto& lane : lanes) lane.allocate(s, rois, offset, mask, direct ? 0 : P * outputs, 0, 0);
    for_lanes(lanes.size(), s.R, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* const first = out + r * P * outputs;
        A* const tile = direct ? reinterpret_cast<A*>(first) : lanes[lane].tile;
        average(s, *lanes[lane].walk, map, r, tile, first);
        if (!direct) write_tile(first, tile, P, outputs, P, last);
      }
    });
  });
  return output;
}

Tensor deform_roi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
                       const std::vector<int64_t>& output_size, double scale, int64_t ratio, double gamma,
                       const std::optional<Tensor>& mask) {
  const Pool s = deform_roi_pool_of(input, rois, output_size, scale, ratio, gamma);
  return forward(s, input, rois, offset, mask);
}

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset, int64_t P,
                         double scale, int64_t group, int64_t part, int64_t samples, double std,
                         const std::optional<Tensor>& mask) {
  const Pool s = deform_psroi_pool_of(input, rois, offset, P, scale, group, part, samples, std);
  return forward(s, input, rois, offset, mask);
}

Tensor roi_align(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
                 int64_t ratio, bool aligned) {
  const Pool s = roi_align_of(input, rois, output_size, scale, ratio, aligned);
  return forward(s, input, rois, std::nullopt, std::nullopt);
}

Tensor ps_roi_align(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
                    int64_t ratio) {
  const Pool s = ps_roi_align_of(input, rois, output_size, scale, ratio);
  return forward(s, input, rois, std::nullopt, std::nullopt);
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&pliant::deform_roi_pool));
  m.impl("roi_align", TORCH_BOX(&pliant::roi_align));
  m.impl("ps_roi_align", TORCH_BOX(&pliant::ps_roi_align));
  m.impl("deform_psroi_pool", TORCH_BOX(&pliant::deform_psroi_pool));
}
