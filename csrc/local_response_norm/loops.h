// The loops of local response normalization: each works on one run of contiguous elements, compiled for every
// instruction level. S is the type of sums, T that of tensors. What is computed for a run depends on nothing but its
// values and its length.
#pragma once

#include <cmath>

#include "job.h"

namespace pliant {
namespace {

template <class T, class S>
PLIANT_INLINE void square_loop(const T* __restrict x, S* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const S value = static_cast<S>(x[i]);
    to[i] = value * value;
  }
}

// Sum `taps` elements that are `stride` apart, in place: q_i ← Σ_{j<taps} q_{i + j·stride} for i < count. By doubling:
// sums of 1, 2, 4, … elements, of which those are added that make up `taps` in binary. `sum` has room for `count`
// elements.
template <class S>
PLIANT_INLINE void window_loop(S* q, S* __restrict sum, int64_t count, int64_t taps, int64_t stride) {
  const int64_t length = count + (taps - 1) * stride;
  std::fill(sum, sum + count, S(0));
  for (int64_t power = 1, done = 0;; power *= 2) {
    if (taps & power) {
      const S* from = q + done * stride;
      for (int64_t i = 0; i < count; ++i) sum[i] += from[i];
      done += power;
    }
    if (done == taps) break;
    const int64_t distance = power * stride;
#pragma GCC ivdep
    for (int64_t i = 0; i < length - distance; ++i) q[i] += q[i + distance];
  }
  std::memcpy(q, sum, count * sizeof(S));
}

// The rows that a window sums: row j begins with tap j of the window of element 0. Rows hold values, whose squares are
// summed, if `squared`, else squares (or ratios); a single row holds sums already.
template <int taps, bool squared, class S>
struct Rows {
  const S* row[taps];

  PLIANT_INLINE Rows(const S* first, int64_t pitch) {
    for (int j = 0; j < taps; ++j) row[j] = first + j * pitch;
  }
  PLIANT_INLINE explicit Rows(const S* const* rows) {
    for (int j = 0; j < taps; ++j) row[j] = rows[j];
  }
  PLIANT_INLINE S sum(int64_t i) const {
    S total = squared ? row[0][i] * row[0][i] : row[0][i];
    for (int j = 1; j < taps; ++j) total += squared ? row[j][i] * row[j][i] : row[j][i];
    return total;
  }
};

template <bool squared, class S>
PLIANT_INLINE Rows<kFused, squared, S> fused_rows(const S* const* rows) {
  return Rows<kFused, squared, S>(rows);
}

// p ← s^−β by std::pow for double.
PLIANT_INLINE void power_loop(const double* s, double* p, int64_t n, double beta, double) {
  for (int64_t i = 0; i < n; ++i) p[i] = std::pow(s[i], -beta);
}

// float: 2^(−β·(e + log2 m)) with s = m·2^e, m in [√½, √2). β comes in two parts, a head of 16 bits, whose product with
// e is exact, and a rest. Values that are not positive normal numbers, or whose powers are not, go through std::pow.
PLIANT_INLINE void power_loop(const float* __restrict s, float* __restrict p, int64_t n, float beta, float rest) {
  uint32_t odd = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, s + i, 4);
    const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    const uint32_t mantissa = bits - (static_cast<uint32_t>(e) << 23);
    float m;
    std::memcpy(&m, &mantissa, 4);
    // log2 m = 2/ln 2·(z + z³/3 + z⁵/5 + …)
    const float z = (m - 1.0f) / (m + 1.0f), zz = z * z;
    const float series = 0.961796694f + zz * (0.577078016f + zz * (0.412198583f + zz * 0.320598898f));
    const float log2m = z * (2.885390082f + zz * series);
    const float exact = -beta * static_cast<float>(e);
    const float small = -(beta + rest) * log2m - rest * static_cast<float>(e);
    const float t = exact + small;
    // Adding 1.5·2²³ rounds to an integer.
    const float whole = (t + 12582912.0f) - 12582912.0f;
    const float f = (exact - whole) + small;
    const float tail = 9.61812911e-3f + f * (1.33335581e-3f + f * (1.54035304e-4f + f * 1.52527338e-5f));
    const float fraction = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * tail)));
    const bool fine = s[i] >= 1.17549435e-38f && s[i] <= 3.40282347e+38f && t > -126.0f && t < 127.0f;
    odd |= fine ? 0u : 1u;
    const uint32_t scale = static_cast<uint32_t>(static_cast<int32_t>(fine ? whole : 0.0f) + 127) << 23;
    float power;
    std::memcpy(&power, &scale, 4);
    p[i] = fine ? fraction * power : -1.0f;  // a sign that no power has
  }
  if (odd) {
    const double exponent = -(static_cast<double>(beta) + rest);
    for (int64_t i = 0; i < n; ++i)
      if (p[i] == -1.0f) p[i] = static_cast<float>(std::pow(static_cast<double>(s[i]), exponent));
  }
}

// x·S^−β for the exponents that need only square roots.
template <Power power, class S>
PLIANT_INLINE S divided(S x, S s) {
  if constexpr (power == Power::half) return x / std::sqrt(s);
  if constexpr (power == Power::three_quarters) {
    const S r = std::sqrt(s);
    return x / (r * std::sqrt(r));
  }
  return x / s;
}

// scaled ← g·S^−β and ratio ← g·x·S^(−β−1) with one division: 1/S is the square of 1/√S.
template <Power power, class T, class S>
PLIANT_INLINE void ratio_at(S s, T x, T g, S& scaled, S& ratio) {
  const S inverse = 1 / (power == Power::one ? s : std::sqrt(s));
  const S gp = static_cast<S>(g) * (power == Power::three_quarters ? inverse * std::sqrt(inverse) : inverse);
  scaled = gp;
  ratio = gp * static_cast<S>(x) * (power == Power::one ? inverse : inverse * inverse);
}

constexpr int64_t kStrip = 256;

// y ← x·S^−β
template <class T, class R>
PLIANT_INLINE void forward_loop(const Job<T>& job, const R& rows, const T* __restrict x, T* __restrict y, int64_t n) {
  using S = typename Work<T>::type;
  const S a = job.a, k = job.k;
  if (job.power == Power::half) {
    for (int64_t i = 0; i < n; ++i) y[i] = divided<Power::half, S>(x[i], k + a * rows.sum(i));
  } else if (job.power == Power::three_quarters) {
    for (int64_t i = 0; i < n; ++i) y[i] = divided<Power::three_quarters, S>(x[i], k + a * rows.sum(i));
  } else if (job.power == Power::one) {
    for (int64_t i = 0; i < n; ++i) y[i] = divided<Power::one, S>(x[i], k + a * rows.sum(i));
  } else {
    S s[kStrip], p[kStrip];
    for (int64_t start = 0; start < n; start += kStrip) {
      const int64_t count = std::min(kStrip, n - start);
      for (int64_t i = 0; i < count; ++i) s[i] = k + a * rows.sum(start + i);
      power_loop(s, p, count, job.beta, job.beta_rest);
      for (int64_t i = 0; i < count; ++i) y[start + i] = static_cast<T>(static_cast<S>(x[start + i]) * p[i]);
    }
  }
}

// scaled ← g·S^−β, ratio ← g·x·S^(−β−1)
template <class T, class R, class S>
PLIANT_INLINE void ratio_loop(const Job<T>& job, const R& rows, const T* __restrict x, const T* __restrict g,
                              S* __restrict scaled, S* __restrict ratio, int64_t n) {
  const S a = job.a, k = job.k;
  if (job.power == Power::half) {
    for (int64_t i = 0; i < n; ++i) ratio_at<Power::half>(k + a * rows.sum(i), x[i], g[i], scaled[i], ratio[i]);
  } else if (job.power == Power::three_quarters) {
    for (int64_t i = 0; i < n; ++i)
      ratio_at<Power::three_quarters>(k + a * rows.sum(i), x[i], g[i], scaled[i], ratio[i]);
  } else if (job.power == Power::one) {
    for (int64_t i = 0; i < n; ++i) ratio_at<Power::one>(k + a * rows.sum(i), x[i], g[i], scaled[i], ratio[i]);
  } else {
    S s[kStrip], p[kStrip];
    for (int64_t start = 0; start < n; start += kStrip) {
      const int64_t count = std::min(kStrip, n - start);
      for (int64_t i = 0; i < count; ++i) s[i] = k + a * rows.sum(start + i);
      power_loop(s, p, count, job.beta, job.beta_rest);
      for (int64_t i = 0; i < count; ++i) {
        scaled[start + i] = static_cast<S>(g[start + i]) * p[i];
        ratio[start + i] = scaled[start + i] * static_cast<S>(x[start + i]) / s[i];
      }
    }
  }
}

// out ← scaled − 2aβ·x·Σ ratio
template <class T, class R, class S>
PLIANT_INLINE void gather_loop(const Job<T>& job, const R& ratios, const T* __restrict x, const S* __restrict scaled,
                               T* __restrict out, int64_t n) {
  const S factor = job.factor;
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<T>(scaled[i] - factor * static_cast<S>(x[i]) * ratios.sum(i));
}

// Fetch the elements that the next block squares, while this one computes.
template <class T>
PLIANT_INLINE void fetch(const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(x + i);
}

// The kernels. First for blocks: `times` runs, dx apart in the tensors and dq apart in the scratch, whose windows are
// kFused rows a pitch apart, or sums already.
template <class T, class S>
PLIANT_INLINE void forward_all(const Job<T>& job, const T* x, const S* q, T* y, int64_t n, int64_t times, int64_t dx,
                               int64_t dq) {
  const int64_t ahead = times * dx;
  for (; times > 0; --times, x += dx, y += dx, q += dq) {
    fetch(x + ahead, n);
    if (job.fused)
      forward_loop(job, Rows<kFused, false, S>(q, job.pitch), x, y, n);
    else
      forward_loop(job, Rows<1, false, S>(q, 0), x, y, n);
  }
}

template <class T, class S>
PLIANT_INLINE void ratio_all(const Job<T>& job, const T* x, const T* g, const S* q, S* scaled, S* ratio, int64_t n,
                             int64_t times, int64_t dx, int64_t dq) {
  for (; times > 0; --times, x += dx, g += dx, q += dq, scaled += dq, ratio += dq) {
    if (job.fused)
      ratio_loop(job, Rows<kFused, false, S>(q, job.pitch), x, g, scaled, ratio, n);
    else
      ratio_loop(job, Rows<1, false, S>(q, 0), x, g, scaled, ratio, n);
  }
}

template <class T, class S>
PLIANT_INLINE void gather_all(const Job<T>& job, const T* x, const S* scaled, const S* ratio, T* out, int64_t n,
                              int64_t times, int64_t dx, int64_t dq) {
  for (; times > 0; --times, x += dx, out += dx, scaled += dq, ratio += dq) {
    if (job.fused)
      gather_loop(job, Rows<kFused, false, S>(ratio, job.pitch), x, scaled, out, n);
    else
      gather_loop(job, Rows<1, false, S>(ratio, 0), x, scaled, out, n);
  }
}

#define PLIANT_SQUARE_RUNS(T, S) void square_runs(const T* x, S* q, int64_t n, int64_t times, int64_t dx, int64_t dq)
#define PLIANT_FORWARD_RUNS(T, S)                                                                                   \
  void forward_runs(const Job<T>& job, const T* x, const S* q, T* y, int64_t n, int64_t times, int64_t dx, int64_t dq)
#define PLIANT_RATIO_RUNS(T, S)                                                                                   \
  void ratio_runs(const Job<T>& job, const T* x, const T* g, const S* q, S* scaled, S* ratio, int64_t n,          \
                  int64_t times, int64_t dx, int64_t dq)
#define PLIANT_GATHER_RUNS(T, S)                                                                                     \
  void gather_runs(const Job<T>& job, const T* x, const S* scaled, const S* ratio, T* out, int64_t n, int64_t times, \
                   int64_t dx, int64_t dq)
PLIANT_KERNEL(PLIANT_SQUARE_RUNS, { for (; times > 0; --times, x += dx, q += dq) square_loop(x, q, n); },
              (float, float), (double, double), (BFloat16, float), (Half, float))
PLIANT_KERNEL(PLIANT_FORWARD_RUNS, { forward_all(job, x, q, y, n, times, dx, dq); }, (float, float), (double, double),
              (BFloat16, float), (Half, float))
PLIANT_KERNEL(PLIANT_RATIO_RUNS, { ratio_all(job, x, g, q, scaled, ratio, n, times, dx, dq); }, (float, float),
              (double, double), (BFloat16, float), (Half, float))
PLIANT_KERNEL(PLIANT_GATHER_RUNS, { gather_all(job, x, scaled, ratio, out, n, times, dx, dq); }, (float, float),
              (double, double), (BFloat16, float), (Half, float))

// Then for one row of a channels-first map, whose window is kFused rows of the tensor itself: no squares are stored.
#define PLIANT_WINDOW_SUM(S) void window_sum(S* q, S* sum, int64_t count, int64_t taps, int64_t stride)
#define PLIANT_FORWARD_ROW(S) void forward_row(const Job<S>& job, const S* const* p, const S* x, S* y, int64_t n)
#define PLIANT_RATIO_ROW(S)                                                                                       \
  void ratio_row(const Job<S>& job, const S* const* p, const S* x, const S* g, S* scaled, S* ratio, int64_t n)
#define PLIANT_GATHER_ROW(S)                                                                                      \
  void gather_row(const Job<S>& job, const S* const* p, const S* x, const S* scaled, S* out, int64_t n)
PLIANT_KERNEL(PLIANT_WINDOW_SUM, { window_loop(q, sum, count, taps, stride); }, (float), (double))
PLIANT_KERNEL(PLIANT_FORWARD_ROW, { forward_loop(job, fused_rows<true>(p), x, y, n); }, (float), (double))
PLIANT_KERNEL(PLIANT_RATIO_ROW, { ratio_loop(job, fused_rows<true>(p), x, g, scaled, ratio, n); }, (float), (double))
PLIANT_KERNEL(PLIANT_GATHER_ROW, { gather_loop(job, fused_rows<false>(p), x, scaled, out, n); }, (float), (double))

}  // namespace
}  // namespace pliant
