// RoI max pooling: the channels-last map, pixel by pixel of a bin, all channels at once; forward keeps which pixels
// were taken, backward adds to them.
#include "bins.h"
#include "maps.h"

namespace pliant {
namespace {

// As many channels stay in registers while the pixels of a bin pass by.
constexpr int64_t STRIP = 32;

// For n ≤ STRIP channels: the maximum over a part of the map, and the pixel y·W + x where it first stands. NaN is
// larger than every number.
template <class A, class I, class L>
PLIANT_INLINE void strip_impl(A* best, int32_t* taken, const A* image, int64_t C, int64_t W, const Span& rows,
                              const Span& columns, L n) {
  A most[STRIP];
  I place[STRIP];
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

template <class A, class I>
PLIANT_INLINE void largest_impl(A* best, int32_t* taken, const A* image, int64_t C, int64_t W, const Span& rows,
                                const Span& columns) {
  int64_t c = 0;
  for (; c + STRIP <= C; c += STRIP)
    strip_impl<A, I>(best + c, taken + c, image + c, C, W, rows, columns, std::integral_constant<int64_t, STRIP>());
  if (c < C) strip_impl<A, I>(best + c, taken + c, image + c, C, W, rows, columns, C - c);
}
PLIANT_CLONES void largest(float* best, int32_t* taken, const float* image, int64_t C, int64_t W, const Span& rows,
                           const Span& columns) {
  largest_impl<float, int32_t>(best, taken, image, C, W, rows, columns);
}
PLIANT_CLONES void largest(double* best, int32_t* taken, const double* image, int64_t C, int64_t W, const Span& rows,
                           const Span& columns) {
  largest_impl<double, int64_t>(best, taken, image, C, W, rows, columns);
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& rois, const std::vector<int64_t>& output_size,
                                    double scale) {
  const auto bins_of = numbers<2>(output_size);
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  STD_TORCH_CHECK(is_map(input) && are_boxes(rois, input) && Ph > 0 && Pw > 0 && input.size(2) <= INT32_MAX / input.size(3),
                  "roi_pool: arguments that do not fit each other; pliant.ops.roi_pool says which");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3), R = rois.size(0);
  const int64_t count = Ph * Pw;
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
    const int64_t lanes = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(R, 1));
    Buffer<A> maxima(lanes * count * C);
    Buffer<int32_t> pixels(lanes * count * C);

    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t lane = begin; lane < end; ++lane) {
        A* const best = maxima.get() + lane * count * C;
        int32_t* const place = pixels.get() + lane * count * C;
        for (int64_t r = R * lane / lanes; r < R * (lane + 1) / lanes; ++r) {
          for (int64_t b = 0; b < count; ++b) {
            const Span rows = bins.row(r, b / Pw), columns = bins.column(r, b % Pw);
            if (rows.empty() || columns.empty()) {
              std::fill_n(best + b * C, C, A(0)), std::fill_n(place + b * C, C, -1);
              continue;
            }
            largest(best + b * C, place + b * C, map.data + bins.image[r] * H * W * C, C, W, rows, columns);
          }
          T* const to = out + r * count * C;
          for (int64_t b = 0; b < count; b += kBlock)
            for (int64_t c = 0; c < C; c += kBlock) {
              const int64_t channels = std::min(kBlock, C - c), some = std::min(kBlock, count - b);
              transpose(places + (r * C + c) * count + b, count, place + b * C + c, C, channels, some);
              if (!last) transpose(to + c * count + b, count, best + b * C + c, C, channels, some);
            }
          if (last)
            for (int64_t i = 0; i < count * C; ++i) to[i] = T(best[i]);
        }
      }
    });
  });
  return {output, taken};
}

Tensor roi_pool_backward(const Tensor& grad, const std::vector<int64_t>& input_size, bool last, const Tensor& rois,
                         const std::vector<int64_t>& output_size, double scale, const Tensor& taken) {
  const auto map_of = numbers<4>(input_size);
  const int64_t N = map_of[0], C = map_of[1], H = map_of[2], W = map_of[3];
  const auto bins_of = numbers<2>(output_size);
  const int64_t Ph = bins_of[0], Pw = bins_of[1];
  bool fits = is_map(grad) && are_boxes(rois, grad) && grad.size(0) == rois.size(0) && N >= 0 && H > 0 && W > 0 &&
              grad.size(1) == C && grad.size(2) == Ph && grad.size(3) == Pw &&
              taken.dim() == 4 && taken.scalar_type() == ScalarType::Int;
  for (int d = 0; fits && d < 4; ++d) fits = taken.size(d) == grad.size(d);
  STD_TORCH_CHECK(fits, "roi_pool: the gradient does not fit the boxes");
  const int64_t R = grad.size(0), count = Ph * Pw, HW = H * W;
  Tensor grad_input = empty_map(grad, N, C, H, W, last);
  const Tensor places = torch::stable::contiguous(taken);
  const int32_t* const place = static_cast<const int32_t*>(places.const_data_ptr());

  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = typename Work<T>::type;
    T* const out = static_cast<T*>(grad_input.mutable_data_ptr());
    const Bins bins = Bins::place<A>(rois, N, H, W, 1, 1, 1, 0);
    std::vector<std::vector<int64_t>> boxes(N);
    for (int64_t r = 0; r < R; ++r)
      if (bins.image[r] >= 0) boxes[bins.image[r]].push_back(r);
    const Planes grads(grad);

    // Some channels of one image at a time, summed plane by plane, which stay in cache; in the result itself where that
    // is its form. Every sum is added in the order of the boxes, however many threads there are.
    const bool direct = std::is_same_v<T, A> && !last;
    const int64_t some = std::clamp<int64_t>((256 << 10) / (std::max<int64_t>(HW, 1) * sizeof(A)), 1, kBlock);
    const int64_t blocks = (C + some - 1) / some, jobs = N * blocks;
    const int64_t lanes = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, std::max<int64_t>(jobs, 1));
    Buffer<A> memory(direct ? 0 : lanes * some * HW), rows(lanes * count);
    parallel(lanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t lane = begin; lane < end; ++lane)
        for (int64_t job = jobs * lane / lanes; job < jobs * (lane + 1) / lanes; ++job) {
          const int64_t n = job / blocks, c0 = job % blocks * some, channels = std::min(some, C - c0);
          T* const to = out + n * C * HW + (last ? c0 : c0 * HW);
          A* const sums = direct ? reinterpret_cast<A*>(to) : memory.get() + lane * some * HW;
          A* const row = rows.get() + lane * count;
          std::fill_n(sums, channels * HW, A(0));
          for (const int64_t r : boxes[n])
            for (int64_t c = 0; c < channels; ++c) {
              const int32_t* const from = place + (r * C + c0 + c) * count;
              grads.read(r, c0 + c, Pw, 0, count, row);
              for (int64_t b = 0; b < count; ++b)
                if (from[b] >= 0 && from[b] < HW) sums[c * HW + from[b]] += row[b];
            }
          if (direct) continue;
          for (int64_t p = 0; p < HW; p += kBlock) {
            const int64_t pixels = std::min(kBlock, HW - p);
            if (last)
              transpose(to + p * C, C, sums + p, HW, pixels, channels);
            else
              for (int64_t c = 0; c < channels; ++c)
                for (int64_t i = p; i < p + pixels; ++i) to[c * HW + i] = T(sums[c * HW + i]);
          }
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
