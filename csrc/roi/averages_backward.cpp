// Gradients of the averages over the bins of RoIs. The input's is a scatter: threads split the channels, so that every
// sum keeps the order of the RoIs. Those of offsets and masks are products of a bin's gradient with the pixels that it
// reads: threads split the RoIs.
#include "../isa.h"
#include "averages.h"

namespace pliant {
namespace {

// map[row, column][0..Width) += weight·weight·grad, the gradient held in registers.
template <int Width, class A>
PLIANT_INLINE void scatter_block(A* map, const A* grad, int64_t C, int64_t W, const Axis<A>& rows,
                                 const Axis<A>& columns, A factor) {
  A g[Width];
#pragma omp simd
  for (int c = 0; c < Width; ++c) g[c] = factor * grad[c];
  for (int64_t i = 0; i < rows.count; ++i) {
    A* line = map + rows.index[i] * W * C;
    for (int64_t j = 0; j < columns.count; ++j) {
      A* __restrict out = line + columns.index[j] * C;
      const A w = rows.weight[i] * columns.weight[j];
      asm volatile("");
#pragma omp simd
      for (int c = 0; c < Width; ++c) out[c] += w * g[c];
    }
  }
}

template <class A>
PLIANT_INLINE void scatter_bin(A* map, const A* grad, int64_t C, int64_t W, int64_t n, const Axis<A>& rows,
                               const Axis<A>& columns, A factor) {
  in_blocks<A>(n, [&](auto width, int64_t c) __attribute__((always_inline)) {
    scatter_block<width.value>(map + c, grad + c, C, W, rows, columns, factor);
  });
}

// Σ_c grad·(average) of a bin, and its derivatives for a move of the bin by a pixel down and right.
template <class A>
struct Moments {
  A value = 0, dy = 0, dx = 0;
};

// Products are added up in `Lanes` independent sums: a single one would wait for each addition.
template <int Lanes, class A>
PLIANT_INLINE void dots_by(Moments<A>& m, const A* grad, const A* map, int64_t C, int64_t W, int64_t n,
                           const Axis<A>& rows, const Axis<A>& columns) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const A* line = map + rows.index[i] * W * C;
    A weighted[Lanes] = {}, sloped[Lanes] = {};
    for (int64_t j = 0; j < columns.count; ++j) {
      const A* x = line + columns.index[j] * C;
      A sum[Lanes] = {};
      int64_t c = 0;
      for (; c + Lanes <= n; c += Lanes) {
        asm volatile("");
#pragma omp simd
        for (int l = 0; l < Lanes; ++l) sum[l] += grad[c + l] * x[c + l];
      }
      for (int l = 0; c + l < n; ++l) sum[l] += grad[c + l] * x[c + l];
      const A w = columns.weight[j], slope = columns.slope[j];
#pragma omp simd
      for (int l = 0; l < Lanes; ++l) weighted[l] += w * sum[l], sloped[l] += slope * sum[l];
    }
    A all = 0, along = 0;
    for (int l = 0; l < Lanes; ++l) all += weighted[l], along += sloped[l];
    m.value += rows.weight[i] * all;
    m.dy += rows.slope[i] * all;
    m.dx += rows.weight[i] * along;
  }
}

template <class A>
PLIANT_INLINE void dots_bin(Moments<A>& m, const A* grad, const A* map, int64_t C, int64_t W, int64_t n,
                            const Axis<A>& rows, const Axis<A>& columns) {
  constexpr int kLanes = 128 / sizeof(A);
  if (n >= kLanes)
    dots_by<kLanes>(m, grad, map, C, W, n, rows, columns);
  else
    dots_by<1>(m, grad, map, C, W, n, rows, columns);
}

#define PLIANT_SCATTER_BIN(A)                                                                                       \
  void scatter(A* map, const A* grad, int64_t C, int64_t W, int64_t n, const Axis<A>& rows, const Axis<A>& columns, \
               A factor)
PLIANT_KERNEL(PLIANT_SCATTER_BIN, { scatter_bin(map, grad, C, W, n, rows, columns, factor); }, (float), (double))
#define PLIANT_DOTS_BIN(A)                                                                                    \
  void dots(Moments<A>& m, const A* grad, const A* map, int64_t C, int64_t W, int64_t n, const Axis<A>& rows, \
            const Axis<A>& columns)
PLIANT_KERNEL(PLIANT_DOTS_BIN, { dots_bin(m, grad, map, C, W, n, rows, columns); }, (float), (double))

// Scatter channels [c0, c1) of the output's gradient, and of every group of the map, into `sums`.
template <class A>
void scatter_channels(const Pool& s, Walk<A>& walk, const Map<A>& grads, A* sums, int64_t c0, int64_t c1) {
  const int64_t outputs = s.outputs(), each = s.each();
  for (int64_t r = 0; r < s.R; ++r)
    walk.each_bin(r, [&](const auto& bin) {
      const int64_t first = std::max(bin.k * each, c0), last = std::min((bin.k + 1) * each, c1);
      if (first >= last) return;
      A* to = sums + bin.image * s.H * s.W * s.C + bin.channel + first - bin.k * each;
      const A* from = grads.data + (r * s.bins() + bin.ph * s.Pw + bin.pw) * outputs + first;
      scatter(to, from, s.C, s.W, last - first, bin.rows, bin.columns, bin.factor);
    });
}

// The input's gradient, summed channels-last: in the result itself if that is its layout and type.
template <class T, class A>
void input_gradient(const Pool& s, const Tensor& rois, const std::optional<Tensor>& offset,
                    const std::optional<Tensor>& mask, const Map<A>& grads, Tensor& result, bool last) {
  const bool direct = std::is_same_v<T, A> && last && s.groups() == 1;
  const int64_t size = s.N * s.H * s.W * s.C, outputs = s.outputs();
  Buffer<A> own;
  if (!direct) own = Buffer<A>(size);
  A* const sums = direct ? static_cast<A*>(result.mutable_data_ptr()) : own.get();
  parallel(size, 1 << 15, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A(0)); });

  std::vector<PoolLane<A>> lanes(lanes_for((outputs + 15) / 16));
  for (auto& lane : lanes) lane.allocate(s, rois, offset, mask, 0, 0, 0);
  for_lanes(lanes.size(), outputs,
            [&](int64_t lane, int64_t c0, int64_t c1) { scatter_channels(s, *lanes[lane].walk, grads, sums, c0, c1); });
  if (!direct) write_map(static_cast<T*>(result.mutable_data_ptr()), sums, s.N, s.C, s.H * s.W, last, s.groups());
}

// The gradients of RoI r's offsets, if they are wanted, and of its masks, into the lane's memory.
template <class A>
void dot_bins(const Pool& s, PoolLane<A>& lane, const Map<A>& grads, const Map<A>& map, int64_t r, int64_t offsets) {
  const int64_t outputs = s.outputs(), each = s.each(), P = s.bins();
  std::fill_n(lane.offset, offsets, A(0));
  std::fill_n(lane.mask, P, A(0));
  lane.walk->each_bin(r, [&](const auto& bin) {
    const int64_t place = bin.ph * s.Pw + bin.pw;
    Moments<A> m;
    dots(m, grads.data + (r * P + place) * outputs + bin.k * each, map.data + bin.image * s.H * s.W * s.C + bin.channel,
         s.C, s.W, each, bin.rows, bin.columns);
    lane.mask[place] += m.value * bin.share;
    if (offsets == 0) return;
    // Several bins may share an offset.
    A* slot = lane.offset + s.slot(bin.k, bin.ph, bin.pw);
    slot[0] += bin.factor * bin.dx * m.dx;
    slot[s.parts()] += bin.factor * bin.dy * m.dy;
  });
}

template <class A>
void offset_and_mask_gradients(const Pool& s, const Tensor& input, const Tensor& rois,
                               const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
                               const Map<A>& grads, Tensor* grad_offset, Tensor* grad_mask) {
  const Map<A> map(input, s.groups());
  const int64_t offsets = grad_offset ? 2 * s.classes * s.parts() : 0, P = s.bins();
  std::vector<PoolLane<A>> lanes(lanes_for(s.R));
  for (auto& lane : lanes) lane.allocate(s, rois, offset, mask, 0, offsets, P);
  for_lanes(lanes.size(), s.R, [&](int64_t lane, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      dot_bins(s, lanes[lane], grads, map, r, offsets);
      if (grad_offset) write_run(*grad_offset, r * offsets, lanes[lane].offset, offsets);
      if (grad_mask) write_run(*grad_mask, r * P, lanes[lane].mask, P);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Pool& s, const Tensor& grad, const Tensor& input, const Tensor& rois,
                                            const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
                                            int64_t wanted) {
  require_pool(s, input, rois, offset, mask, &grad);
  const bool want_input = wanted & 1, want_offset = offset && (wanted & 2), want_mask = mask && (wanted & 4);
  const bool last = channels_last(input);
  Tensor grad_input = gradient_map(want_input, input, last, input);
  Tensor grad_offset = gradient_map(want_offset, offset ? *offset : input, false, input);
  Tensor grad_mask = gradient_map(want_mask, mask ? *mask : input, false, input);
  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Map<typename Work<T>::type> grads(grad);
    if (want_input) input_gradient<T>(s, rois, offset, mask, grads, grad_input, last);
    if (want_offset || want_mask)
      offset_and_mask_gradients(s, input, rois, offset, mask, grads, want_offset ? &grad_offset : nullptr,
                                want_mask ? &grad_mask : nullptr);
  });
  return {grad_input, grad_offset, grad_mask};
}

std::tuple<Tensor, Tensor, Tensor> deform_roi_pool_backward(const Tensor& grad, const Tensor& input, const Tensor& rois,
                                                            const std::optional<Tensor>& offset,
                                                            const std::vector<int64_t>& output_size, double scale,
                                                            int64_t ratio, double gamma,
                                                            const std::optional<Tensor>& mask, int64_t wanted) {
  const Pool s = deform_roi_pool_of(input, rois, output_size, scale, ratio, gamma);
  return backward(s, grad, input, rois, offset, mask, wanted);
}

std::tuple<Tensor, Tensor, Tensor> deform_psroi_pool_backward(const Tensor& grad, const Tensor& input,
                                                              const Tensor& rois, const std::optional<Tensor>& offset,
                                                              int64_t P, double scale, int64_t group, int64_t part,
                                                              int64_t samples, double std,
                                                              const std::optional<Tensor>& mask, int64_t wanted) {
  const Pool s = deform_psroi_pool_of(input, rois, offset, P, scale, group, part, samples, std);
  return backward(s, grad, input, rois, offset, mask, wanted);
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& input, const Tensor& rois,
                          const std::vector<int64_t>& output_size, double scale, int64_t ratio, bool aligned) {
  const Pool s = roi_align_of(input, rois, output_size, scale, ratio, aligned);
  return std::get<0>(backward(s, grad, input, rois, std::nullopt, std::nullopt, 1));
}

Tensor ps_roi_align_backward(const Tensor& grad, const Tensor& input, const Tensor& rois,
                             const std::vector<int64_t>& output_size, double scale, int64_t ratio) {
  const Pool s = ps_roi_align_of(input, rois, output_size, scale, ratio);
  return std::get<0>(backward(s, grad, input, rois, std::nullopt, std::nullopt, 1));
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("deform_roi_pool_backward", TORCH_BOX(&pliant::deform_roi_pool_backward));
  m.impl("deform_psroi_pool_backward", TORCH_BOX(&pliant::deform_psroi_pool_backward));
  m.impl("roi_align_backward", TORCH_BOX(&pliant::roi_align_backward));
  m.impl("ps_roi_align_backward", TORCH_BOX(&pliant::ps_roi_align_backward));
}
