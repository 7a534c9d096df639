// RoI max pooling: the channels-last map, pixel by pixel of a bin, all channels at once. Forward records which pixels
// are the maxima, backward adds to them.
#include "../isa.h"
#include "../maps/map.h"
#include "../maps/write.h"
#include "bins.h"

namespace pliant {
namespace {

constexpr const char* kOp = "roi_pool";

// Channels whose maxima stay in registers while the pixels of a bin pass by.
constexpr int64_t kStrip = 32;

// For n ≤ kStrip channels: the maximum over a bin, and the first pixel y·W + x that has it. NaN is larger than every
// number.
template <class A, class L>
PLIANT_INLINE void largest_strip(A* best, int32_t* taken, const A* image, int64_t C, int64_t W, const Span& rows,
                                 const Span& columns, L n) {
  using I = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // as wide as A: vectors of both have as many lanes
  A most[kStrip];
  I place[kStrip];
  const int64_t first = rows.begin * W + columns.begin;
  for (int64_t c = 0; c < n; ++c) most[c] = image[first * C + c], place[c] = I(first);
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const I pixel = I(y * W + x);
      const A* const value = image + pixel * C;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) {
        const A v = value[c], m = most[c];
        const bool larger = (v > m) | ((v != v) & (m == m));
        most[c] = larger ? v : m;
        place[c] = larger ? pixel : place[c];
      }
    }
  for (int64_t c = 0; c < n; ++c) best[c] = most[c], taken[c] = int32_t(place[c]);
}

template <class A>
PLIANT_INLINE void largest_bin(A* best, int32_t* taken, const A* image, int64_t C, int64_t W, const Span& rows,
                               const Span& columns) {
  int64_t c = 0;
  for (; c + kStrip <= C; c += kStrip)
    largest_strip(best + c, taken + c, image + c, C, W, rows, columns, std::integral_constant<int64_t, kStrip>());
  if (c < C) largest_strip(best + c, taken + c, image + c, C, W, rows, columns, C - c);
}

#define PLIANT_LARGEST(A) \
  void largest(A* best, int32_t* taken, const A* image, int64_t C, int64_t W, const Span& rows, const Span& columns)
PLIANT_KERNEL(PLIANT_LARGEST, { largest_bin(best, taken, image, C, W, rows, columns); }, (float), (double))

// The maxima of all bins of box r, and their pixels, as [bins][channels]: 0 and −1 for an empty bin.
template <class A>
void pool_box(const Bins& bins, const Map<A>& map, int64_t r, int64_t C, int64_t HW, int64_t W, A* best,
              int32_t* taken) {
  for (int64_t b = 0; b < bins.count(); ++b, best += C, taken += C) {
    const Span rows = bins.row(r, b), columns = bins.column(r, b);
    if (rows.empty() || columns.empty())
      std::fill_n(best, C, A(0)), std::fill_n(taken, C, -1);
    else
      largest(best, taken, map.data + bins.image[r] * HW * C, C, W, rows, columns);
  }
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                                    double scale) {
  const auto bins_of = numbers<2>(output_size, kOp, "output_size");
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  require_fit(is_map(input) && input.size(2) <= INT32_MAX / input.size(3), kOp, "input");
  require_fit(are_boxes(rois, input), kOp, "rois");
  require_fit(are_bins(Ph, Pw), kOp, "output_size");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3), R = rois.size(0);
  require_fit(could_hold({Ph, Pw, C}), kOp, "output_size");
  const int64_t size = Ph * Pw * C;
  const bool last = channels_last(input);
  Tensor output = empty_map(input, R, C, Ph, Pw, last);
  Tensor taken = torch::stable::new_empty(input, {R, C, Ph, Pw}, ScalarType::Int);
  int32_t* const places = static_cast<int32_t*>(taken.mutable_data_ptr());

  dispatch(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    const Map<A> map(input);
    const Bins bins = Bins::place<A>(rois, N, H, W, Ph, Pw, scale, 1);
    T* const out = static_cast<T*>(output.mutable_data_ptr());
    const int64_t lanes = lanes_for(R);
    const Buffer<A> maxima(lanes * size);
    const Buffer<int32_t> pixels(lanes * size);
    for_lanes(lanes, R, [&](int64_t lane, int64_t begin, int64_t end) {
      A* const best = maxima.get() + lane * size;
      int32_t* const place = pixels.get() + lane * size;
      for (int64_t r = begin; r < end; ++r) {
        pool_box(bins, map, r, C, H * W, W, best, place);
        write_tile(places + r * size, place, bins.count(), C, bins.count(), false);
        write_tile(out + r * size, best, bins.count(), C, bins.count(), last);
      }
    });
  });
  return {output, taken};
}

// Add the gradient of channels [c0, c0 + channels) of box r to the planes of its image. `row` has room for a value per
// bin.
template <class A>
void add_box(A* sums, const Planes& grads, const int32_t* place, int64_t r, int64_t c0, int64_t channels, int64_t Pw,
             int64_t count, int64_t HW, A* row) {
  for (int64_t c = 0; c < channels; ++c, sums += HW, place += count) {
    grads.read(r, c0 + c, Pw, 0, count, row);
    for (int64_t b = 0; b < count; ++b)
      if (place[b] >= 0 && place[b] < HW) sums[place[b]] += row[b];
  }
}

// The boxes of each image, in order.
template <class A>
std::vector<std::vector<int64_t>> boxes_of_images(const Tensor& rois, int64_t N, int64_t H, int64_t W) {
  const Bins bins = Bins::place<A>(rois, N, H, W, 1, 1, 1, 0);
  std::vector<std::vector<int64_t>> boxes(N);
  for (int64_t r = 0; r < rois.size(0); ++r)
    if (bins.image[r] >= 0) boxes[bins.image[r]].push_back(r);
  return boxes;
}

Tensor roi_pool_backward(const Tensor& grad, const std::vector<int64_t>& input_size, bool last, const Tensor& rois,
                         const std::vector<int64_t>& output_size, double scale, const Tensor& taken) {
  const auto map_of = numbers<4>(input_size, kOp, "input_size");
  const auto bins_of = numbers<2>(output_size, kOp, "output_size");
  const int64_t N = map_of[0], C = map_of[1], H = map_of[2], W = map_of[3], Ph = bins_of[0], Pw = bins_of[1];
  require_fit(are_bins(Ph, Pw), kOp, "output_size");
  require_fit(are_sizes(N, C, H, W) && H <= INT32_MAX / W, kOp, "input_size");
  require_fit(are_boxes(rois, grad), kOp, "rois");
  require_fit(is_floating(grad) && has_shape(grad, {rois.size(0), C, Ph, Pw}), kOp, "grad");
  require_fit(taken.scalar_type() == ScalarType::Int && has_shape(taken, {rois.size(0), C, Ph, Pw}), kOp, "taken");
  const int64_t count = Ph * Pw, HW = H * W;
  Tensor grad_input = empty_map(grad, N, C, H, W, last);
  const Tensor places = torch::stable::contiguous(taken);
  const int32_t* const place = static_cast<const int32_t*>(places.const_data_ptr());

  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    T* const out = static_cast<T*>(grad_input.mutable_data_ptr());
    const auto boxes = boxes_of_images<A>(rois, N, H, W);
    const Planes grads(grad);

    // A few channels of one image at a time, summed in planes, which stay in cache; in the result itself if that is its
    // layout and type. Every sum is added in the order of the boxes, however many threads there are.
    const bool direct = std::is_same_v<T, A> && !last;
    const int64_t some = std::clamp<int64_t>((256 << 10) / (HW * sizeof(A)), 1, kBlock);
    const int64_t blocks = pieces(C, some), lanes = lanes_for(N * blocks);
    const Buffer<A> memory(direct ? 0 : lanes * some * HW), rows(lanes * count);
    for_lanes(lanes, N * blocks, [&](int64_t lane, int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t n = job / blocks, c0 = job % blocks * some, channels = std::min(some, C - c0);
        T* const to = out + n * C * HW + (last ? c0 : c0 * HW);
        A* const sums = direct ? reinterpret_cast<A*>(to) : memory.get() + lane * some * HW;
        std::fill_n(sums, channels * HW, A(0));
        for (const int64_t r : boxes[n])
          add_box(sums, grads, place + (r * C + c0) * count, r, c0, channels, Pw, count, HW, rows.get() + lane * count);
        if (last)
          transpose(to, C, sums, HW, HW, channels);
        else if (!direct)
          convert(to, sums, channels * HW);
      }
    });
  });
  return grad_input;
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&pliant::roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&pliant::roi_pool_backward));
}
