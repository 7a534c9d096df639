// Gradients of the averages over RoI bins. The input's is a scatter: threads split the channels, so every sum keeps the
// order of the RoIs. Those of offsets and masks are made of the products of a bin's gradient with the pixels it reads:
// threads split the RoIs.
#include "operators.h"

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
PLIANT_INLINE void scatter_impl(A* map, const A* grad, int64_t C, int64_t W, int64_t n, const Axis<A>& rows,
                                const Axis<A>& columns, A factor) {
  constexpr int kWide = 256 / sizeof(A), kNarrow = 32 / sizeof(A);
  int64_t c = 0;
  for (; c + kWide <= n; c += kWide) scatter_block<kWide>(map + c, grad + c, C, W, rows, columns, factor);
  for (; c + kNarrow <= n; c += kNarrow) scatter_block<kNarrow>(map + c, grad + c, C, W, rows, columns, factor);
  for (; c < n; ++c) scatter_block<1>(map + c, grad + c, C, W, rows, columns, factor);
}

// What a bin's value, and its move by a pixel, contribute: Σ_c grad·(average), and its derivative down and right.
template <class A>
struct Moments {
  A value = 0, dy = 0, dx = 0;
};

// Products are added up in `Lanes` sums side by side: one alone would wait for itself.
template <int Lanes, class A>
PLIANT_INLINE void dots_of(Moments<A>& m, const A* grad, const A* map, int64_t C, int64_t W, int64_t n,
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
PLIANT_INLINE void dots_impl(Moments<A>& m, const A* grad, const A* map, int64_t C, int64_t W, int64_t n,
                             const Axis<A>& rows, const Axis<A>& columns) {
  constexpr int kLanes = 128 / sizeof(A);
  if (n >= kLanes)
    dots_of<kLanes>(m, grad, map, C, W, n, rows, columns);
  else
    dots_of<1>(m, grad, map, C, W, n, rows, columns);
}

PLIANT_CLONES void scatter(float* x, const float* g, int64_t C, int64_t W, int64_t n, const Axis<float>& r,
                           const Axis<float>& c, float f) {
  scatter_impl(x, g, C, W, n, r, c, f);
}
PLIANT_CLONES void scatter(double* x, const double* g, int64_t C, int64_t W, int64_t n, const Axis<double>& r,
                           const Axis<double>& c, double f) {
  scatter_impl(x, g, C, W, n, r, c, f);
}
PLIANT_CLONES void dots(Moments<float>& m, const float* g, const float* x, int64_t C, int64_t W, int64_t n,
                        const Axis<float>& r, const Axis<float>& c) {
  dots_impl(m, g, x, C, W, n, r, c);
}
PLIANT_CLONES void dots(Moments<double>& m, const double* g, const double* x, int64_t C, int64_t W, int64_t n,
                        const Axis<double>& r, const Axis<double>& c) {
  dots_impl(m, g, x, C, W, n, r, c);
}

// Write what RoI r found into a gradient that is dense, in its own dtype.
template <class A>
void write_row(Tensor& t, int64_t r, const A* row, int64_t count) {
  dispatch(t.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(t.mutable_data_ptr()) + r * count;
    for (int64_t i = 0; i < count; ++i) to[i] = T(row[i]);
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Pool& s, const Tensor& grad, const Tensor& input, const Tensor& rois,
                                            const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
                                            int64_t wanted) {
  check(s, input, rois, offset, mask, &grad);
  const bool want_input = wanted & 1, want_offset = offset && (wanted & 2), want_mask = mask && (wanted & 4);
  const bool last = channels_last(input);
  const int64_t outputs = s.outputs(), P = s.bins(), each = outputs / s.classes, HWC = s.H * s.W * s.C;
  auto map_or_none = [&](bool want, const Tensor& t, bool format) {
    return want ? empty_map(t, t.size(0), t.size(1), t.size(2), t.size(3), format)
                : torch::stable::new_empty(input, {0});
  };
  Tensor grad_input = map_or_none(want_input, input, last);
  Tensor grad_offset = map_or_none(want_offset, offset ? *offset : input, false);
  Tensor grad_mask = map_or_none(want_mask, mask ? *mask : input, false);

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> grads(grad);
    const int64_t threads = torch::stable::get_num_threads();

    struct Lane {
      Arena arena;
      std::unique_ptr<Walk<A>> walk;
      A *offset, *mask;
    };
    auto make = [&](int64_t lanes, int64_t offsets, int64_t masks) {
      std::vector<Lane> own(lanes);
      for (auto& lane : own) {
        lane.walk = std::make_unique<Walk<A>>(s, rois, offset, mask, lane.arena);
        lane.arena.reserve(lane.offset, offsets);
        lane.arena.reserve(lane.mask, masks);
        lane.arena.allocate();
      }
      return own;
    };

    if (want_input) {
      // Summed channels-last in A: in the result itself where that is its form.
      const bool direct = std::is_same_v<T, A> && last && s.groups() == 1;
      Buffer<A> summed;
      if (!direct) summed = Buffer<A>(s.N * HWC);
      A* sums = direct ? reinterpret_cast<A*>(grad_input.mutable_data_ptr()) : summed.get();
      parallel(s.N * HWC, 1 << 15, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A(0)); });

      const int64_t lanes = std::min(threads, (outputs + 15) / 16);
      auto own = make(lanes, 0, 0);
      parallel(lanes, 1, [&](int64_t begin, int64_t end) {
        // Channels [c0, c1) of the output, and of every group of the map.
        const int64_t c0 = outputs * begin / lanes, c1 = outputs * end / lanes;
        for (int64_t r = 0; r < s.R; ++r)
          own[begin].walk->each_bin(r, [&](const auto& bin) {
            const int64_t first = std::max(bin.k * each, c0), last = std::min((bin.k + 1) * each, c1);
            if (first >= last) return;
            A* to = sums + bin.image * HWC + bin.channel + first - bin.k * each;
            const A* from = grads.data + (r * P + bin.ph * s.Pw + bin.pw) * outputs + first;
            scatter(to, from, s.C, s.W, last - first, bin.rows, bin.columns, bin.factor);
          });
      });
      T* const to = static_cast<T*>(grad_input.mutable_data_ptr());
      if (summed) write_map(to, summed.get(), s.N, s.C, s.H * s.W, last, s.groups());
    }

    if (!want_offset && !want_mask) return;
    const Map<A> map(input, s.groups());
    const int64_t lanes = std::max<int64_t>(std::min(threads, s.R), 1);
    const int64_t offsets = want_offset ? 2 * s.classes * s.parts() : 0;
    auto own = make(lanes, offsets, P);
    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Lane& lane = own[i];
        for (int64_t r = s.R * i / lanes; r < s.R * (i + 1) / lanes; ++r) {
          std::fill_n(lane.offset, offsets, A(0));
          std::fill_n(lane.mask, P, A(0));
          lane.walk->each_bin(r, [&](const auto& bin) {
            const int64_t place = bin.ph * s.Pw + bin.pw;
            Moments<A> m;
            dots(m, grads.data + (r * P + place) * outputs + bin.k * each, map.data + bin.image * HWC + bin.channel, s.C,
                 s.W, each, bin.rows, bin.columns);
            lane.mask[place] += m.value * bin.share;
            if (!want_offset) return;
            // Several bins may share a part.
            A* slot = lane.offset + s.slot(bin.k, bin.ph, bin.pw);
            slot[0] += bin.factor * bin.dx * m.dx;
            slot[s.parts()] += bin.factor * bin.dy * m.dy;
          });
          if (want_offset) write_row(grad_offset, r, lane.offset, offsets);
          if (want_mask) write_row(grad_mask, r, lane.mask, P);
        }
      }
    });
  });
  return {grad_input, grad_offset, grad_mask};
}

std::tuple<Tensor, Tensor, Tensor> deform_roi_pool_backward(const Tensor& grad, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
 const std::vector<int64_t>& output_size, double scale, int64_t ratio, double gamma,
 const std::optional<Tensor>& mask, int64_t wanted) {
  const Pool s = deform_roi_pool_of(input, rois, output_size, scale, ratio, gamma);
  return backward(s, grad, input, rois, offset, mask, wanted);
}

std::tuple<Tensor, Tensor, Tensor> deform_psroi_pool_backward(const Tensor& grad, const Tensor& input, const Tensor& rois, const std::optional<Tensor>& offset,
 int64_t P, double scale, int64_t group, int64_t part, int64_t samples, double std,
 const std::optional<Tensor>& mask, int64_t wanted) {
  const Pool s = deform_psroi_pool_of(input, rois, offset, P, scale, group, part, samples, std);
  return backward(s, grad, input, rois, offset, mask, wanted);
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
 int64_t ratio, bool aligned) {
  const Pool s = roi_align_of(input, rois, output_size, scale, ratio, aligned);
  return std::get<0>(backward(s, grad, input, rois, std::nullopt, std::nullopt, 1));
}

Tensor ps_roi_align_backward(const Tensor& grad, const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale,
 int64_t ratio) {
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
