// The loops for β = ¾ over five channels in float, written once over the number of lanes: three_quarters.h includes
// this file once for each width, after what differs. PLIANT_TARGET is the level.

// The sums of squares in the windows of kLanes elements, from rows of the tensor.
PLIANT_TARGET PLIANT_INLINE Floats squares(const float* const* rows, int64_t i) {
  Floats sum = load(rows[0] + i) * load(rows[0] + i);
  for (int j = 1; j < kFused; ++j) sum += load(rows[j] + i) * load(rows[j] + i);
  return sum;
}

// One row of a channels-first map: y ← x·S^−¾. n ≥ kLanes.
PLIANT_TARGET void forward_row(const Job<float>& job, const float* const* p, const float* x, float* y, int64_t n) {
  const float* const rows[kFused] = {p[0], p[1], p[2], p[3], p[4]};
  const float a = job.a, k = job.k;
  for (int64_t i = 0, last = n - kLanes;; i = std::min(i + kLanes, last)) {
    store(y + i, load(x + i) * powers(k + a * squares(rows, i)).power);
    if (i == last) break;
  }
}

// scaled ← g·S^−¾ and ratio ← g·x·S^−7/4 for one row and, if `gathers`, the gradient of the row whose window ends here:
// out ← its scaled − 2aβ·x·Σ ratio. `ratios` are the other rows of its window.
template <bool gathers>
PLIANT_TARGET PLIANT_INLINE void backward_loop(const Job<float>& job, const float* const* p, const float* x,
                                               const float* g, float* scaled, float* ratio, const float* const* ratios,
                                               const float* x_then, const float* scaled_then, float* out, int64_t n) {
  const float* const rows[kFused] = {p[0], p[1], p[2], p[3], p[4]};
  const float* const q[kFused - 1] = {ratios[0], ratios[1], ratios[2], ratios[3]};
  const float a = job.a, k = job.k, factor = job.factor;
  for (int64_t i = 0, last = n - kLanes;; i = std::min(i + kLanes, last)) {
    const Powers of = powers(k + a * squares(rows, i));
    const Floats gp = load(g + i) * of.power, here = gp * load(x + i) * of.inverse;
    store(scaled + i, gp);
    store(ratio + i, here);
    if (gathers) {
      const Floats sum = load(q[0] + i) + load(q[1] + i) + load(q[2] + i) + load(q[3] + i) + here;
      store(out + i, load(scaled_then + i) - factor * load(x_then + i) * sum);
    }
    if (i == last) break;
  }
}

PLIANT_TARGET void backward_row(const Job<float>& job, const float* const* p, const float* x, const float* g,
                                float* scaled, float* ratio, const float* const* ratios, const float* x_then,
                                const float* scaled_then, float* out, int64_t n) {
  if (out)
    backward_loop<true>(job, p, x, g, scaled, ratio, ratios, x_then, scaled_then, out, n);
  else
    backward_loop<false>(job, p, x, g, scaled, ratio, ratios, x_then, scaled_then, out, n);
}

// Channels-last: pixels of C ≥ kLanes channels one after another.

// The sum of the squares around channels i … i + kLanes − 1 of a pixel.
PLIANT_TARGET PLIANT_INLINE Floats squares_around(const float* x, int64_t i, int64_t C, int64_t before, int64_t after) {
  const float* first = x + i - before;
  if (i >= before && i + kLanes + after <= C) {
    const float* const rows[kFused] = {first, first + 1, first + 2, first + 3, first + 4};
    return squares(rows, 0);
  }
  Floats sum = {};
  for (int j = 0; j < kFused; ++j) {
    const Floats value = load_inside(first + j, i - before + j, C);
    sum = j ? sum + value * value : value * value;
  }
  return sum;
}

PLIANT_TARGET void forward_pixels(const Job<float>& job, const float* x, float* y, int64_t pixels) {
  const int64_t C = job.layout.rows, before = job.before, after = job.after;
  const float a = job.a, k = job.k;
  for (; pixels > 0; --pixels, x += C, y += C) {
    for (int64_t i = 0, last = C - kLanes;; i = std::min(i + kLanes, last)) {
      store(y + i, load(x + i) * powers(k + a * squares_around(x, i, C, before, after)).power);
      if (i == last) break;
    }
  }
}

// The second step is one pixel behind the first: it reads across the first one's stores, which take a while to arrive.
// `scratch` holds four times C + kFused − 1 elements.
PLIANT_TARGET void backward_pixels(const Job<float>& job, const float* x, const float* g, float* out, int64_t pixels,
                                   float* scratch) {
  const int64_t C = job.layout.rows, before = job.before, after = job.after, size = C + kFused - 1;
  const float a = job.a, k = job.k, factor = job.factor;
  std::fill(scratch, scratch + 4 * size, 0.0f);
  for (int64_t pixel = 0; pixel <= pixels; ++pixel, x += C, g += C, out += C) {
    float *ratio = scratch + pixel % 2 * size, *scaled = ratio + 2 * size;
    if (pixel < pixels) {
      for (int64_t i = 0, last = C - kLanes;; i = std::min(i + kLanes, last)) {
        const Powers of = powers(k + a * squares_around(x, i, C, before, after));
        const Floats gp = load(g + i) * of.power;
        store(scaled + i, gp);
        store(ratio + after + i, gp * load(x + i) * of.inverse);
        if (i == last) break;
      }
    }
    if (pixel == 0) continue;
    ratio = scratch + (pixel - 1) % 2 * size, scaled = ratio + 2 * size;
    for (int64_t i = 0, last = C - kLanes;; i = std::min(i + kLanes, last)) {
      const float* q = ratio + i;
      const Floats sum = load(q) + load(q + 1) + load(q + 2) + load(q + 3) + load(q + 4);
      store(out - C + i, load(scaled + i) - factor * load(x - C + i) * sum);
      if (i == last) break;
    }
  }
}
