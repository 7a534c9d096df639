// Compiled without contraction: see placement.h.
#include "placement.h"

#include <algorithm>
#include <cmath>

#include "../isa.h"

namespace pliant {
namespace {

template <class A>
PLIANT_INLINE void add(Axis<A>& axis, int64_t i, A weight, A slope) {
  // Samples come in ascending order, so a row that is there already is one of the last two.
  for (int64_t k = axis.count - 1; k >= 0 && k >= axis.count - 2; --k)
    if (axis.index[k] == i) {
      axis.weight[k] += weight, axis.slope[k] += slope;
      return;
    }
  axis.index[axis.count] = i, axis.weight[axis.count] = weight, axis.slope[axis.count] = slope, ++axis.count;
}

// Add one bilinear sample at `position`, clamped to the map.
template <class A>
PLIANT_INLINE void add_sample(Axis<A>& axis, A position, int64_t extent) {
  const A clamped = std::min(std::max(position, A(0)), A(extent - 1)), low = std::floor(clamped), part = clamped - low;
  // The right-sided derivative; 0 where the position is clamped.
  const A slope = position >= 0 && position < A(extent - 1) ? A(1) : A(0);
  const int64_t first = int64_t(low);
  add(axis, first, 1 - part, -slope);
  add(axis, std::min(first + 1, extent - 1), part, slope);
}

// Deformable PS-RoI pooling: samples out of bounds do not count.
template <class A>
void lay_out_counted(Axis<A>& axis, int64_t samples, A origin, A bin, int64_t extent) {
  const A step = bin / A(samples);
  axis.samples = 0;
  for (int64_t i = 0; i < samples; ++i) {
    const A position = origin + A(i) * step;
    if (!(position >= A(-0.5) && position <= A(extent) - A(0.5))) continue;
    add_sample(axis, position, extent);
    axis.samples += 1;
  }
}

// RoIAlign: samples out of bounds are zeros.
template <class A>
void lay_out_aligned(Axis<A>& axis, int64_t samples, A origin, A bin, int64_t extent) {
  const bool adaptive = samples <= 0;
  const A total = adaptive ? std::max(std::ceil(bin), A(0)) : A(samples);
  axis.samples = total;
  if (!(total > 0)) return;
  const A step = bin / total;
  A skipped = 0;
  int64_t visits = samples;
  if (adaptive) {
    // Adaptive samples are half a pixel apart or more where there are two: of a huge box only those are visited that
    // may be in the map. NaN skips nothing here and counts nothing below.
    skipped = std::min(std::max(std::floor((-1 - origin) / step) - 1, A(0)), total);
    visits = int64_t(std::min(total, std::ceil(A(extent + 1) / step) + 4));
  }
  for (int64_t j = 0; j < visits; ++j) {
    // An inverted box has its samples from right to left.
    const A i = A(bin < 0 ? visits - 1 - j : j);
    const A position = origin + skipped * step + (i + A(0.5)) * bin / total;
    if (skipped + i < total && position >= -1 && position <= A(extent)) add_sample(axis, position, extent);
  }
}

}  // namespace

template <class A>
bool place_box(const A (&box)[5], const SampleRule& rule, int64_t N, Side<A>& y, Side<A>& x) {
  if (!(box[0] >= 0 && box[0] < A(N))) return false;
  for (A v : box)
    if (!std::isfinite(v)) return false;
  const A scale = A(rule.scale), half = rule.counted || rule.aligned ? A(0.5) : A(0);
  if (rule.counted) {
    // std::round rounds halves away from zero.
    x.start = std::round(box[1]) * scale - half, y.start = std::round(box[2]) * scale - half;
    x.size = std::max((std::round(box[3]) + 1) * scale - half - x.start, A(0.1));
    y.size = std::max((std::round(box[4]) + 1) * scale - half - y.start, A(0.1));
  } else {
    x.start = box[1] * scale - half, y.start = box[2] * scale - half;
    x.size = box[3] * scale - half - x.start, y.size = box[4] * scale - half - y.start;
    if (!rule.aligned) x.size = std::max(x.size, A(1)), y.size = std::max(y.size, A(1));
  }
  return std::isfinite(x.start) && std::isfinite(y.start) && std::isfinite(x.size * A(rule.gamma)) &&
         std::isfinite(y.size * A(rule.gamma)) && std::isfinite(x.size) && std::isfinite(y.size);
}

template <class A>
void lay_out(Axis<A>& axis, const SampleRule& rule, const Side<A>& side, int64_t place, int64_t bins, A shift,
             int64_t extent) {
  axis.count = 0;
  const A bin = side.size / A(bins), origin = side.start + A(place) * bin + shift;
  if (rule.counted)
    lay_out_counted(axis, rule.samples, origin, bin, extent);
  else
    lay_out_aligned(axis, rule.samples, origin, bin, extent);
}

template <class A>
void cut_side(Span* spans, int64_t count, A first, A last, A scale, int64_t extent, A more) {
  const A start = std::round(first * scale), end = std::round(last * scale);
  const A length = std::max(end - start + more, A(1));
  if (!std::isfinite(start) || !std::isfinite(length)) return;
  const A bin = length / A(count);
  auto within = [&](A at) { return int64_t(std::min(std::max(at, A(0)), A(extent))); };
  for (int64_t k = 0; k < count; ++k)
    spans[k] = {within(std::floor(A(k) * bin) + start), within(std::ceil(A(k + 1) * bin) + start)};
}

#define PLIANT_PLACEMENT(A)                                                                                       \
  template bool place_box(const A (&box)[5], const SampleRule& rule, int64_t N, Side<A>& y, Side<A>& x);          \
  template void lay_out(Axis<A>& axis, const SampleRule& rule, const Side<A>& side, int64_t place, int64_t bins,  \
                        A shift, int64_t extent);                                                                 \
  template void cut_side(Span* spans, int64_t count, A first, A last, A scale, int64_t extent, A more);
PLIANT_PLACEMENT(float)
PLIANT_PLACEMENT(double)

}  // namespace pliant
