// Position-sensitive RoI pooling: the channels of one bin are adjacent and averaged over its whole pixels; backward
// adds the gradient to those pixels.
#include "../isa.h"
#include "../maps/map.h"
#include "../maps/write.h"
#include "bins.h"

namespace pliant {
namespace {

constexpr const char* kOp = "ps_roi_pool";

// total += x over all pixels of a bin, for its n channels.
template <class A>
PLIANT_INLINE void collect_bin(A* __restrict total, const A* image, int64_t C, int64_t W, const Span& rows,
                               const Span& columns, int64_t n) {
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const A* const value = image + (y * W + x) * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) total[c] += value[c];
    }
}

// x += value for all pixels of a bin.
template <class A>
PLIANT_INLINE void spread_bin(A* image, const A* __restrict value, int64_t C, int64_t W, const Span& rows,
                              const Span& columns, int64_t n) {
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      A* const to = image + (y * W + x) * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) to[c] += value[c];
    }
}

#define PLIANT_COLLECT_BIN(A) \
  void collect(A* total, const A* image, int64_t C, int64_t W, const Span& rows, const Span& columns, int64_t n)
PLIANT_KERNEL(PLIANT_COLLECT_BIN, { collect_bin(total, image, C, W, rows, columns, n); }, (float), (double))
#define PLIANT_SPREAD_BIN(A) \
  void spread(A* image, const A* value, int64_t C, int64_t W, const Span& rows, const Span& columns, int64_t n)
PLIANT_KERNEL(PLIANT_SPREAD_BIN, { spread_bin(image, value, C, W, rows, columns, n); }, (float), (double))

// values[0..n) /= pixels of a bin.
template <class A>
void divide_by_area(A* values, const Span& rows, const Span& columns, int64_t n) {
  const A area = A((rows.end - rows.begin) * (columns.end - columns.begin));
  for (int64_t c = 0; c < n; ++c) values[c] /= area;
}

// The averages of all bins of box r, as [bins][O]: 0 for an empty bin.
template <class A>
void average_box(const Bins& bins, const Map<A>& map, int64_t r, int64_t O, int64_t HW, int64_t W, A* totals) {
  const int64_t C = bins.count() * O;
  std::fill_n(totals, C, A(0));
  for (int64_t b = 0; b < bins.count(); ++b) {
    const Span rows = bins.row(r, b), columns = bins.column(r, b);
    if (rows.empty() || columns.empty()) continue;
    collect(totals + b * O, map.data + bins.image[r] * HW * C + b * O, C, W, rows, columns, O);
    divide_by_area(totals + b * O, rows, columns, O);
  }
}

Tensor ps_roi_pool(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size, double scale) {
  const auto bins_of = numbers<2>(output_size, kOp, "output_size");
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  require_fit(are_bins(Ph, Pw), kOp, "output_size");
  require_fit(is_map(input) && input.size(1) % (Ph * Pw) == 0, kOp, "input");
  require_fit(are_boxes(rois, input), kOp, "rois");
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
    const int64_t lanes = lanes_for(R);
    const Buffer<A> memory(lanes * C);
    for_lanes(lanes, R, [&](int64_t lane, int64_t begin, int64_t end) {
      A* const totals = memory.get() + lane * C;
      for (int64_t r = begin; r < end; ++r) {
        average_box(bins, map, r, O, H * W, W, totals);
        write_tile(out + r * C, totals, count, O, count, last);
      }
    });
  });
  return output;
}

// Scatter the gradients of bin b of all boxes, values [R][bins][O], which are divided by the bins' pixels first.
template <class A>
void scatter_bins(const Bins& bins, int64_t b, A* values, int64_t R, int64_t O, int64_t HW, int64_t W, A* sums) {
  const int64_t C = bins.count() * O;
  for (int64_t r = 0; r < R; ++r) {
    const Span rows = bins.row(r, b), columns = bins.column(r, b);
    if (rows.empty() || columns.empty()) continue;
    A* const value = values + r * C + b * O;
    divide_by_area(value, rows, columns, O);
    spread(sums + bins.image[r] * HW * C + b * O, value, C, W, rows, columns, O);
  }
}

Tensor ps_roi_pool_backward(const Tensor& grad, const std::vector<int64_t>& input_size, bool last, const Tensor& rois,
                            const std::vector<int64_t>& output_size, double scale) {
  const auto map_of = numbers<4>(input_size, kOp, "input_size");
  const auto bins_of = numbers<2>(output_size, kOp, "output_size");
  const int64_t N = map_of[0], C = map_of[1], H = map_of[2], W = map_of[3], Ph = bins_of[0], Pw = bins_of[1];
  require_fit(are_bins(Ph, Pw), kOp, "output_size");
  require_fit(are_sizes(N, C, H, W) && C % (Ph * Pw) == 0, kOp, "input_size");
  require_fit(are_boxes(rois, grad), kOp, "rois");
  require_fit(is_floating(grad) && has_shape(grad, {rois.size(0), C / (Ph * Pw), Ph, Pw}), kOp, "grad");
  const int64_t R = grad.size(0), O = grad.size(1), count = Ph * Pw;
  Tensor grad_input = empty_map(grad, N, C, H, W, last);

  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Bins bins = Bins::place<A>(rois, N, H, W, Ph, Pw, scale, 0);
    const Planes grads(grad);
    const int64_t numel = N * H * W * C;
    const Buffer<A> summed(numel), values(R * C);  // values: [R][bins][O]
    parallel(numel, 1 << 15,
             [&](int64_t begin, int64_t end) { std::fill(summed.get() + begin, summed.get() + end, A(0)); });
    parallel(R, 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t c = 0; c < O; ++c) grads.read(r, c, Pw, 0, count, values.get() + r * C + c, O);
    });
    // Bins have channels of their own: threads split the bins, and every sum is added in the order of the boxes.
    parallel(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) scatter_bins(bins, b, values.get(), R, O, H * W, W, summed.get());
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
