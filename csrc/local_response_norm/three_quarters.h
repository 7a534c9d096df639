// Local response normalization for β = ¾ over five channels in float, on processors with AVX2 or AVX-512. Roots and
// divisions share one slow unit, which limits the plain loops; here S^−¾ comes from estimates of 1/√, and backward
// makes its two steps in one pass. Each element is computed by the same operations wherever it lies: the last lanes of
// a run overlap those before them.
#pragma once

#include "loops.h"

#if PLIANT_LEVELS
#include <immintrin.h>

namespace pliant {
namespace {
namespace three_quarters {

#define PLIANT_TARGET PLIANT_V3
namespace eight {

inline constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(32)));

PLIANT_V3 PLIANT_INLINE Floats load(const float* from) {
  return _mm256_loadu_ps(from);
}
PLIANT_V3 PLIANT_INLINE void store(float* to, Floats v) {
  _mm256_storeu_ps(to, v);
}

// Lanes `at` … of which those in [0, C) are loaded; zeros elsewhere.
PLIANT_V3 PLIANT_INLINE Floats load_inside(const float* from, int64_t at, int64_t C) {
  const __m256i lanes = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(int(at)));
  const __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(-1)),
                                          _mm256_cmpgt_epi32(_mm256_set1_epi32(int(C)), lanes));
  return _mm256_maskload_ps(from, inside);
}

// s^−¾ and 1/s.
struct Powers {
  Floats power, inverse;
};

// r ≈ s^−½ to 12 bits makes r·√r, which misses e = 1 − s·r²: s^−¾ = r·√r·(1 − e)^−¾ = r·√r·(1 + 3e/4 + 21e²/32). Values
// that are not positive normal numbers go through roots.
PLIANT_V3 PLIANT_INLINE Powers powers(Floats s) {
  const Floats r = _mm256_rsqrt_ps(s), e = 1.0f - s * r * r, p = r * Floats(_mm256_sqrt_ps(r));
  const Floats result = p + p * (e * (0.75f + 0.65625f * e)), inverse = 1.0f / s;
  // A sign bit for zeros and subnormal, negative, infinite values and NaN: integers leave the multipliers free.
  const __m256i bits = _mm256_castps_si256(s), normal = _mm256_set1_epi32(0x00800000);
  const __m256 odd = _mm256_castsi256_ps(_mm256_add_epi32(bits, normal) | _mm256_sub_epi32(bits, normal));
  if (__builtin_expect(_mm256_movemask_ps(odd) == 0, 1)) return {result, inverse};
  const Floats root = _mm256_sqrt_ps(s), exact = 1.0f / (root * Floats(_mm256_sqrt_ps(root)));
  return {_mm256_blendv_ps(result, exact, odd), inverse};
}

#include "estimated.h"

}  // namespace eight
#undef PLIANT_TARGET

#define PLIANT_TARGET PLIANT_V4
namespace sixteen {

inline constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));

PLIANT_V4 PLIANT_INLINE Floats load(const float* from) {
  return _mm512_loadu_ps(from);
}
PLIANT_V4 PLIANT_INLINE void store(float* to, Floats v) {
  _mm512_storeu_ps(to, v);
}

PLIANT_V4 PLIANT_INLINE Floats load_inside(const float* from, int64_t at, int64_t C) {
  const uint32_t below = (1u << std::clamp<int64_t>(-at, 0, kLanes)) - 1;
  const uint32_t within = (1u << std::clamp<int64_t>(C - at, 0, kLanes)) - 1;
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(within & ~below), from);
}

struct Powers {
  Floats power, inverse;
};

// GCC 12 warns of the intrinsics without a mask (its bug 105593).
inline constexpr __mmask16 kAll = 0xffff;

// The same from estimates to 14 bits, of s^¼ too, as q ≈ r^−½ with d = 1 − r·q²: s^−¾ = r²·q·(1 + 3e/4 + d/2) and
// 1/s = r²·(1 + e), where the squares of e and d are below the last bit. No root, no division.
PLIANT_V4 PLIANT_INLINE Powers powers(Floats s) {
  const Floats r = _mm512_maskz_rsqrt14_ps(kAll, s), q = _mm512_maskz_rsqrt14_ps(kAll, r), rq = r * q;
  const Floats e = 1.0f - s * r * r, d = 1.0f - rq * q, p = r * rq, rr = r * r;
  const Floats result = p + p * (0.75f * e + 0.5f * d), inverse = rr + rr * e;
  const __mmask16 odd = _mm512_fpclass_ps_mask(s, 0xff);  // all but positive normal numbers
  if (__builtin_expect(odd == 0, 1)) return {result, inverse};
  const Floats root = _mm512_maskz_sqrt_ps(kAll, s), exact = 1.0f / (root * Floats(_mm512_maskz_sqrt_ps(kAll, root)));
  return {_mm512_mask_blend_ps(odd, result, exact), _mm512_mask_blend_ps(odd, inverse, 1.0f / s)};
}

#include "estimated.h"

}  // namespace sixteen
#undef PLIANT_TARGET

// One row of a channels-first map.
inline void forward_row(const Job<float>& job, const float* const* p, const float* x, float* y, int64_t n) {
  job.lanes == 16 ? sixteen::forward_row(job, p, x, y, n) : eight::forward_row(job, p, x, y, n);
}
inline void backward_row(const Job<float>& job, const float* const* p, const float* x, const float* g, float* scaled,
                         float* ratio, const float* const* ratios, const float* x_then, const float* scaled_then,
                         float* out, int64_t n) {
  const auto run = job.lanes == 16 ? sixteen::backward_row : eight::backward_row;
  run(job, p, x, g, scaled, ratio, ratios, x_then, scaled_then, out, n);
}

// Blocks [begin, end) of pixels, forward or backward.
inline void run_pixels(const Job<float>& job, int64_t begin, int64_t end, float* scratch) {
  const int64_t pixels = std::min(end * job.batch, job.layout.outer) - begin * job.batch;
  const int64_t at = begin * job.batch * job.layout.rows;
  if (job.grad)
    (job.lanes == 16 ? sixteen::backward_pixels : eight::backward_pixels)(job, job.x + at, job.grad + at, job.out + at,
                                                                          pixels, scratch);
  else
    (job.lanes == 16 ? sixteen::forward_pixels : eight::forward_pixels)(job, job.x + at, job.out + at, pixels);
}

}  // namespace three_quarters
}  // namespace
}  // namespace pliant
#endif
