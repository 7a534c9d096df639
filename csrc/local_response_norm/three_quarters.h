// The loops for β = ¾ over five channels in float, on processors with AVX2. Roots and divisions share one slow unit,
// which limits the plain loops; here S^−¾ comes from estimates of 1/√, and backward makes its two steps in one pass.
// Each element is computed by the same operations wherever it lies: the last eight of a run overlap those before them.
#pragma once

#include "loops.h"

#if PLIANT_LEVELS
#include <immintrin.h>

namespace pliant {
namespace {
namespace three_quarters {

typedef float Eight __attribute__((vector_size(32)));

PLIANT_V3 PLIANT_INLINE Eight load(const float* from) { return _mm256_loadu_ps(from); }
PLIANT_V3 PLIANT_INLINE void store(float* to, Eight v) { _mm256_storeu_ps(to, v); }

// s^−¾. r ≈ s^−½ to 12 bits makes r·√r, which misses e = 1 − s·r²: s^−¾ = r·√r·(1 − e)^−¾ = r·√r·(1 + 3e/4 + 21e²/32).
// Values that are not positive normal numbers go through roots.
PLIANT_V3 PLIANT_INLINE Eight power(Eight s) {
  const Eight r = _mm256_rsqrt_ps(s), e = 1.0f - s * r * r, p = r * Eight(_mm256_sqrt_ps(r));
  const Eight result = p + p * (e * (0.75f + 0.65625f * e));
  // A sign bit for zeros and subnormal, negative, infinite values and NaN: integers leave the multipliers free.
  const __m256i bits = _mm256_castps_si256(s), normal = _mm256_set1_epi32(0x00800000);
  const __m256 odd = _mm256_castsi256_ps(_mm256_add_epi32(bits, normal) | _mm256_sub_epi32(bits, normal));
  if (__builtin_expect(_mm256_movemask_ps(odd) == 0, 1)) return result;
  const Eight root = _mm256_sqrt_ps(s), exact = 1.0f / (root * Eight(_mm256_sqrt_ps(root)));
  return _mm256_blendv_ps(result, exact, odd);
}

// The sums of squares in the windows of eight elements, from rows of the tensor.
PLIANT_V3 PLIANT_INLINE Eight squares(const float* const* rows, int64_t i) {
  Eight sum = load(rows[0] + i) * load(rows[0] + i);
  for (int j = 1; j < kFused; ++j) sum += load(rows[j] + i) * load(rows[j] + i);
  return sum;
}

// One row of a channels-first map: y ← x·S^−¾. n ≥ 8.
PLIANT_V3 void forward_row(const Job<float>& job, const float* const* p, const float* x, float* y, int64_t n) {
  const float *const rows[kFused] = {p[0], p[1], p[2], p[3], p[4]};
  const float a = job.a, k = job.k;
  for (int64_t i = 0, last = n - 8;; i = std::min(i + 8, last)) {
    store(y + i, load(x + i) * power(k + a * squares(rows, i)));
    if (i == last) break;
  }
}

// scaled ← g·S^−¾ and ratio ← g·x·S^−7/4 for one row and, if `gathers`, the gradient of the row whose window ends here:
// out ← its scaled − 2aβ·x·Σ ratio. `ratios` are the other rows of its window.
template <bool gathers>
PLIANT_V3 PLIANT_INLINE void backward_loop(const Job<float>& job, const float* const* p, const float* x,
                                             const float* g, float* scaled, float* ratio, const float* const* ratios,
                                             const float* x_then, const float* scaled_then, float* out, int64_t n) {
  const float *const rows[kFused] = {p[0], p[1], p[2], p[3], p[4]};
  const float *const q[kFused - 1] = {ratios[0], ratios[1], ratios[2], ratios[3]};
  const float a = job.a, k = job.k, factor = job.factor;
  for (int64_t i = 0, last = n - 8;; i = std::min(i + 8, last)) {
    const Eight s = k + a * squares(rows, i), gp = load(g + i) * power(s), here = gp * load(x + i) / s;
    store(scaled + i, gp);
    store(ratio + i, here);
    if (gathers) {
      const Eight sum = load(q[0] + i) + load(q[1] + i) + load(q[2] + i) + load(q[3] + i) + here;
      store(out + i, load(scaled_then + i) - factor * load(x_then + i) * sum);
    }
    if (i == last) break;
  }
}

PLIANT_V3 void backward_row(const Job<float>& job, const float* const* p, const float* x, const float* g,
                              float* scaled, float* ratio, const float* const* ratios, const float* x_then,
                              const float* scaled_then, float* out, int64_t n) {
  if (out) backward_loop<true>(job, p, x, g, scaled, ratio, ratios, x_then, scaled_then, out, n);
  else backward_loop<false>(job, p, x, g, scaled, ratio, ratios, x_then, scaled_then, out, n);
}

// Channels-last: pixels of C ≥ 8 channels one after another.

// The sum of the squares around channels i … i + 7 of a pixel.
PLIANT_V3 PLIANT_INLINE Eight squares_around(const float* x, int64_t i, int64_t C, int64_t before, int64_t after) {
  const float* first = x + i - before;
  if (i >= before && i + 8 + after <= C) {
    const float* const rows[kFused] = {first, first + 1, first + 2, first + 3, first + 4};
    return squares(rows, 0);
  }
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  Eight sum = {};
  for (int j = 0; j < kFused; ++j) {
    const __m256i at = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(i - before + j)));
    const __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(-1)),
                                            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(C)), at));
    const Eight value = _mm256_maskload_ps(first + j, inside);
    sum = j ? sum + value * value : value * value;
  }
  return sum;
}

PLIANT_V3 void forward_pixels(const Job<float>& job, const float* x, float* y, int64_t pixels) {
  const int64_t C = job.layout.rows, before = job.before, after = job.after;
  const float a = job.a, k = job.k;
  for (; pixels > 0; --pixels, x += C, y += C) {
    for (int64_t i = 0, last = C - 8;; i = std::min(i + 8, last)) {
      store(y + i, load(x + i) * power(k + a * squares_around(x, i, C, before, after)));
      if (i == last) break;
    }
  }
}

// The second step is one pixel behind the first: it reads across the first one's stores, which take a while to arrive.
// `scratch` holds four times C + kFused − 1 elements.
PLIANT_V3 void backward_pixels(const Job<float>& job, const float* x, const float* g, float* out, int64_t pixels,
                                 float* scratch) {
  const int64_t C = job.layout.rows, before = job.before, after = job.after, size = C + kFused - 1;
  const float a = job.a, k = job.k, factor = job.factor;
  std::fill(scratch, scratch + 4 * size, 0.0f);
  for (int64_t pixel = 0; pixel <= pixels; ++pixel, x += C, g += C, out += C) {
    float *ratio = scratch + pixel % 2 * size, *scaled = ratio + 2 * size;
    if (pixel < pixels) {
      for (int64_t i = 0, last = C - 8;; i = std::min(i + 8, last)) {
        const Eight s = k + a * squares_around(x, i, C, before, after), gp = load(g + i) * power(s);
        store(scaled + i, gp);
        store(ratio + after + i, gp * load(x + i) / s);
        if (i == last) break;
      }
    }
    if (pixel == 0) continue;
    ratio = scratch + (pixel - 1) % 2 * size, scaled = ratio + 2 * size;
    for (int64_t i = 0, last = C - 8;; i = std::min(i + 8, last)) {
      const float* q = ratio + i;
      const Eight sum = load(q) + load(q + 1) + load(q + 2) + load(q + 3) + load(q + 4);
      store(out - C + i, load(scaled + i) - factor * load(x - C + i) * sum);
      if (i == last) break;
    }
  }
}

// Blocks [begin, end) of pixels, forward or backward.
inline void run_pixels(const Job<float>& job, int64_t begin, int64_t end, float* scratch) {
  const int64_t pixels = std::min(end * job.batch, job.layout.outer) - begin * job.batch;
  const int64_t at = begin * job.batch * job.layout.rows;
  if (job.grad)
    backward_pixels(job, job.x + at, job.grad + at, job.out + at, pixels, scratch);
  else
    forward_pixels(job, job.x + at, job.out + at, pixels);
}

}  // namespace three_quarters
}  // namespace
}  // namespace pliant
#endif
