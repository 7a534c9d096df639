// Position-sensitive RoI pooling: the channels of one bin lie side by side, whole pixels of them are added up; backward
// adds them back.
#include "bins.h"
#include "maps.h"

namespace pliant {
namespace {

// total ← total + x and, backward, x ← x + total, for the channels of one bin and every pixel of a part of the map.
template <class A>
PLIANT_INLINE void collect_impl(A* __restrict total, const A* image, int64_t C, int64_t W, const Span& rows,
                                const Span& columns, int64_t n) {
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const A* const value = image + (y * W + x) * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) total[c] += value[c];
    }
}
template <class A>
PLIANT_INLINE void spread_impl(A* image, const A* __restrict value, int64_t C, int64_t W, const Span& rows,
                               const Span& columns, int64_t n) {
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      A* const to = image + (y * W + x) * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) to[c] += value[c];
    }
}
PLIANT_CLONES void collect(float* t, const float* x, int64_t C, int64_t W, const Span& r, const Span& c, int64_t n) {
  collect_impl(t, x, C, W, r, c, n);
}
PLIANT_CLONES void collect(double* t, const double* x, int64_t C, int64_t W, const Span& r, const Span& c, int64_t n) {
  collect_impl(t, x, C, W, r, c, n);
}
PLIANT_CLONES void spread(float* x, const float* v, int64_t C, int64_t W, const Span& r, const Span& c, int64_t n) {
  spread_impl(x, v, C, W, r, c, n);
}
PLIANT_CLONES void spread(double* x, const double* v, int64_t C, int64_t W, const Span& r, const Span& c, int64_t n) {
  spread_impl(x, v, C, W, r, c, n);
}

Tensor ps_roi_pool(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale) {
  const auto bins_of = numbers<2>(output_size);
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  STD_TORCH_CHECK(is_map(input) && are_boxes(rois, input) && Ph > 0 && Pw > 0 && input.size(1) % (Ph * Pw) == 0,
                  "ps_roi_pool: arguments that do not fit each other; pliant.ops.ps_roi_pool says which");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3), R = rois.size(0);
  const int64_t count = Ph * Pw, O = C / count;
  const bool last = channels_last(input);
  Tensor output = empty_map(input, R, O, Ph, Pw, last);

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> map(input, count);
    const Bins bins = Bins::place<A>(rois, N, H, W, Ph, Pw, scale, 0);
    T* const out = static_cast<T*>(output.mutable_data_ptr());
    const int64_t lanes = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(R, 1));
    Buffer<A> memory(lanes * C);

    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t lane = begin; lane < end; ++lane) {
        A* const totals = memory.get() + lane * C;  // [bins][O]
        for (int64_t r = R * lane / lanes; r < R * (lane + 1) / lanes; ++r) {
          std::fill_n(totals, C, A(0));
          for (int64_t b = 0; b < count; ++b) {
            const Span rows = bins.row(r, b / Pw), columns = bins.column(r, b % Pw);
            if (rows.empty() || columns.empty()) continue;
            A* const total = totals + b * O;
            collect(total, map.data + bins.image[r] * H * W * C + b * O, C, W, rows, columns, O);
            const A area = A((rows.end - rows.begin) * (columns.end - columns.begin));
            for (int64_t c = 0; c < O; ++c) total[c] /= area;
          }
          T* const to = out + r * C;
          if (last)
            for (int64_t i = 0; i < C; ++i) to[i] = T(totals[i]);
          else
            for (int64_t b = 0; b < count; b += kBlock)
              for (int64_t c = 0; c < O; c += kBlock)
                transpose(to + c * count + b, count, totals + b * O + c, O, std::min(kBlock, O - c),
                          std::min(kBlock, count - b));
        }
      }
    });
  });
  return output;
}

Tensor ps_roi_pool_backward(const Tensor& grad, const std::vector<int64_t>& input_size, bool last, const Tensor& rois,
                            const std::vector<int64_t>& output_size, double scale) {
  const auto map_of = numbers<4>(input_size);
  const int64_t N = map_of[0], C = map_of[1], H = map_of[2], W = map_of[3];
  const auto bins_of = numbers<2>(output_size);
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  STD_TORCH_CHECK(is_map(grad) && are_boxes(rois, grad) && grad.size(0) == rois.size(0) && N >= 0 && H > 0 && W > 0 &&
                      grad.size(2) == Ph && grad.size(3) == Pw && grad.size(1) * Ph * Pw == C,
                  "ps_roi_pool: the gradient does not fit the boxes");
  const int64_t R = grad.size(0), O = grad.size(1), count = Ph * Pw;
  Tensor grad_input = empty_map(grad, N, C, H, W, last);

  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Bins bins = Bins::place<A>(rois, N, H, W, Ph, Pw, scale, 0);
    const Planes grads(grad);
    const int64_t numel = N * H * W * C;
    Buffer<A> summed(numel), values(R * C);  // values: [R][bins][O]
    parallel(numel, 1 << 15,
             [&](int64_t begin, int64_t end) { std::fill(summed.get() + begin, summed.get() + end, A(0)); });
    parallel(R, 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t c = 0; c < O; ++c) grads.read(r, c, Pw, 0, count, values.get() + r * C + c, O);
    });
    // Bins have channels of their own: threads split them, and every sum is added in the order of the boxes.
    parallel(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        for (int64_t r = 0; r < R; ++r) {
          const Span rows = bins.row(r, b / Pw), columns = bins.column(r, b % Pw);
          if (rows.empty() || columns.empty()) continue;
          A* const value = values.get() + r * C + b * O;
          const A area = A((rows.end - rows.begin) * (columns.end - columns.begin));
          for (int64_t c = 0; c < O; ++c) value[c] /= area;
          spread(summed.get() + bins.image[r] * H * W * C + b * O, value, C, W, rows, columns, O);
        }
    });
    write_map(static_cast<T*>(grad_input.mutable_data_ptr()), summed.get(), N, C, H * W, last, count);
  });
  return grad_input;
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&pliant::ps_roi_pool));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&pliant::ps_roi_pool_backward));
}
