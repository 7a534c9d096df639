// Averages over RoI bins: where a bin reads the map is found once, then all channels are added up in one pass.
#include "operators.h"

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
PLIANT_INLINE void blend_impl(A* out, const A* map, int64_t C, int64_t W, int64_t n, const Axis<A>& rows,
                              const Axis<A>& columns, A factor) {
  constexpr int kWide = 256 / sizeof(A), kNarrow = 32 / sizeof(A);
  int64_t c = 0;
  for (; c + kWide <= n; c += kWide) blend_block<kWide>(out + c, map + c, C, W, rows, columns, factor);
  for (; c + kNarrow <= n; c += kNarrow) blend_block<kNarrow>(out + c, map + c, C, W, rows, columns, factor);
  for (; c < n; ++c) blend_block<1>(out + c, map + c, C, W, rows, columns, factor);
}

PLIANT_CLONES void blend(float* o, const float* x, int64_t C, int64_t W, int64_t n, const Axis<float>& r,
                         const Axis<float>& c, float f) {
  blend_impl(o, x, C, W, n, r, c, f);
}
PLIANT_CLONES void blend(double* o, const double* x, int64_t C, int64_t W, int64_t n, const Axis<double>& r,
                         const Axis<double>& c, double f) {
  blend_impl(o, x, C, W, n, r, c, f);
}

Tensor forward(const Pool& s, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
               const std::optional<Tensor>& mask) {
  check(s, input, rois, offset, mask);
  const bool last = channels_last(input);
  const int64_t outputs = s.outputs(), P = s.bins(), each = outputs / s.classes;
  Tensor output = empty_map(input, s.R, outputs, s.Ph, s.Pw, last);
  if (s.R == 0) return output;

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> map(input, s.groups());
    const int64_t lanes = std::min<int64_t>(torch::stable::get_num_threads(), s.R);
    // Bins come as [bins][channels]: written where they belong if that is the output's form, else put there afterwards.
    const bool direct = std::is_same_v<T, A> && last;
    T* const out = static_cast<T*>(output.mutable_data_ptr());

    struct Lane {
      Arena arena;
      std::unique_ptr<Walk<A>> walk;
      A* tile;
    };
    std::vector<Lane> own(lanes);
    for (auto& lane : own) {
      lane.walk = std::make_unique<Walk<A>>(s, rois, offset, mask, lane.arena);
      lane.arena.reserve(lane.tile, direct ? 0 : P * outputs);
      lane.arena.allocate();
    }

    auto compute = [&](Lane& lane, int64_t r) {
      T* const first = out + r * P * outputs;
      A* const tile = direct ? reinterpret_cast<A*>(first) : lane.tile;
      lane.walk->each_bin(r, [&](const auto& bin) {
        const A* from = map.data + bin.image * s.H * s.W * s.C + bin.channel;
        A* to = tile + (bin.ph * s.Pw + bin.pw) * outputs + bin.k * each;
        blend(to, from, s.C, s.W, each, bin.rows, bin.columns, bin.factor);
        // Ask for the memory of the result while the tile computes: this bin's share of it.
        if (!direct)
          for (int64_t i = bin.k * each; i < (bin.k + 1) * each; i += 64 / sizeof(T))
            __builtin_prefetch(first + (bin.ph * s.Pw + bin.pw) * outputs + i, 1);
      });
      if (direct) return;
      if (last) {
        for (int64_t i = 0; i < P * outputs; ++i) first[i] = T(tile[i]);
        return;
      }
      for (int64_t c = 0; c < outputs; c += kBlock)
        for (int64_t p = 0; p < P; p += kBlock)
          transpose(first + c * P + p, P, tile + p * outputs + c, outputs, std::min(kBlock, outputs - c),
                    std::min(kBlock, P - p));
    };
    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t r = s.R * i / lanes; r < s.R * (i + 1) / lanes; ++r) compute(own[i], r);
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

Tensor deform_psroi_pool(const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
 int64_t P, double scale, int64_t group, int64_t part, int64_t samples, double std,
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
