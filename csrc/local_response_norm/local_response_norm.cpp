// Local response normalization, y = x·S^−β with S = k + a·Σ x² over a window W, and its gradient
//   dx_i = g_i·S_i^−β − 2aβ·x_i·Σ_{j: i∈W(j)} g_j·x_j·S_j^(−β−1).
// A dense tensor is seen as [outer][rows][width][inner] in the order of its memory. The window runs over rows and, in
// the spatial region, over width too. Channels-first: rows = C, inner = H·W; channels-last: rows = C, inner = 1.
// The work is cut into blocks of rows × width × columns of inner that fit into the cache. A block writes its squares
// into a scratch with zeros around them, where a step along the window is one fixed distance (the pitch), so every loop
// is a plain sum of shifted rows. Neighbouring blocks compute the squares at their seam twice; nothing is shared,
// which makes the result the same for any number of threads.
#include "loops.h"
#include "three_quarters.h"

namespace pliant {
namespace {

struct Window {
  int64_t before, after, half;  // over rows, and on both sides over width
  double a, beta, k;
};

// The part of a tensor that a block covers.
struct Block {
  int64_t items, first, row0, row1, column0, columns;
};

template <class T>
Block block_at(const Job<T>& job, int64_t index) {
  const int64_t chunk = index % job.chunks, tile = index / job.chunks % job.tiles;
  const int64_t first = index / job.chunks / job.tiles * job.batch;
  Block b;
  b.first = first, b.items = std::min(job.batch, job.shape.outer - first);
  b.row0 = chunk * job.chunk, b.row1 = std::min(b.row0 + job.chunk, job.shape.rows);
  b.column0 = tile * job.columns, b.columns = std::min(job.columns, job.shape.inner - b.column0);
  return b;
}

// Call f(offset in the tensor, offset in the scratch, length, repeats, step in the tensor, step in the scratch) for
// the contiguous runs of rows [row0, row1) of every outer item; `base` is the row at the start of the scratch.
template <class T, class F>
void each_run(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, int64_t base, F&& f) {
  const Shape& s = job.shape;
  const int64_t line = s.width * s.inner, count = row1 - row0;
  int64_t tensor = (b.first * s.rows + row0) * line + b.column0, scratch = (row0 - base) * job.pitch;
  if (b.columns == s.inner && job.pitch == line)
    return f(tensor, scratch, count * line, b.items, s.rows * line, job.item);
  for (int64_t item = 0; item < b.items; ++item, tensor += s.rows * line, scratch += job.item) {
    if (b.columns == s.inner && job.columns == s.inner) {
      f(tensor, scratch, line, count, line, job.pitch);
    } else {
      for (int64_t w = 0; w < s.width; ++w)
        f(tensor + w * s.inner, scratch + w * job.columns, b.columns, count, line, job.pitch);
    }
  }
}

// What a block does.

// Zero the places of the scratch that rows [row0, row1) leave out: outside the tensor and between its lines.
template <class T, class S>
void clear(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, S* scratch) {
  const int64_t from = std::max<int64_t>(row0, 0), to = std::min(row1, job.shape.rows);
  const bool gaps = job.half > 0 || b.columns < job.columns;
  for (int64_t item = 0; item < b.items; ++item, scratch += job.item) {
    std::fill(scratch, scratch + (gaps ? row1 - row0 : from - row0) * job.pitch, S(0));
    std::fill(scratch + (to - row0) * job.pitch, scratch + (row1 - row0) * job.pitch, S(0));
  }
}

// Write the squares of rows [row0, row1) of every item into q, with zeros where the window leaves the tensor.
template <class T, class S>
void squares(const Job<T>& job, const Block& b, int64_t row0, int64_t row1, S* q) {
  clear(job, b, row0, row1, q);
  each_run(job, b, std::max<int64_t>(row0, 0), std::min(row1, job.shape.rows), row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             square_runs(job.x + at, q + place + job.half * job.columns, n, times, dx, dq);
           });
}

// Replace q by its sums over the window, `rows` rows of every item, where the loops do not sum themselves.
template <class T, class S>
void sums(const Job<T>& job, const Block& b, int64_t rows, S* q, S* spare) {
  if (job.fused) return;
  const int64_t margin = 2 * job.half * job.columns;
  for (int64_t item = 0; item < b.items; ++item, q += job.item) {
    if (job.half > 0) window_sum(q, spare, (rows + job.taps - 1) * job.pitch - margin, 2 * job.half + 1, job.columns);
    if (job.taps > 1) window_sum(q, spare, rows * job.pitch - margin, job.taps, job.pitch);
  }
}

template <class T, class S>
void forward_block(const Job<T>& job, const Block& b, S* q, S* spare) {
  squares(job, b, b.row0 - job.before, b.row1 + job.after, q);
  sums(job, b, b.row1 - b.row0, q, spare);
  each_run(job, b, b.row0, b.row1, b.row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             forward_runs(job, job.x + at, q + place, job.out + at, n, times, dx, dq);
           });
}

template <class T, class S>
void backward_block(const Job<T>& job, const Block& b, S* q, S* spare, S* ratio, S* scaled) {
  // The gradient of row i gathers from rows i − after … i + before, whose own windows reach further.
  const int64_t row0 = b.row0 - job.after, row1 = b.row1 + job.before;
  squares(job, b, row0 - job.before, row1 + job.after, q);
  sums(job, b, row1 - row0, q, spare);
  clear(job, b, row0, row1, ratio);
  each_run(job, b, std::max<int64_t>(row0, 0), std::min(row1, job.shape.rows), row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             ratio_runs(job, job.x + at, job.grad + at, q + place, scaled + place,
                        ratio + place + job.half * job.columns, n, times, dx, dq);
           });
  sums(job, b, b.row1 - b.row0, ratio, spare);
  each_run(job, b, b.row0, b.row1, b.row0,
           [&](int64_t at, int64_t place, int64_t n, int64_t times, int64_t dx, int64_t dq) {
             gather_runs(job, job.x + at, scaled + place + job.after * job.pitch, ratio + place, job.out + at, n, times,
                         dx, dq);
           });
}

constexpr int64_t RING = FUSED;  // rows that the gradient keeps: as few as do, to stay in the nearest cache

// Row c of a tile of columns, and the gradient of the row whose window ends with it.
void estimated_row(const Job<float>& job, const float* const* p, int64_t start, int64_t c, int64_t n, float* scaled,
                   float* ratio, const float* zeros) {
  const int64_t inner = job.shape.inner, pitch = job.pitch, at = start + c * inner;
  if (!job.grad) return three_quarters::forward_row(job, p, job.x + at, job.out + at, n);
  const int64_t i = c - job.before, then = start + i * inner;
  const float* ratios[FUSED - 1];
  for (int64_t j = 0; j < FUSED - 1; ++j) {
    const int64_t row = c - (FUSED - 1) + j;
    ratios[j] = row >= 0 ? ratio + row % RING * pitch : zeros;
  }
  three_quarters::backward_row(job, p, job.x + at, job.grad + at, scaled + c % RING * pitch, ratio + c % RING * pitch,
                               ratios, i < 0 ? nullptr : job.x + then, i < 0 ? nullptr : scaled + i % RING * pitch,
                               i < 0 ? nullptr : job.out + then, n);
}
void estimated_row(const Job<double>&, const double* const*, int64_t, int64_t, int64_t, double*, double*,
                   const double*) {}  // never called

// One tile of columns, row after row: the tensor is read once from memory and FUSED times from the nearest cache.
template <class S>
void run_rows(const Job<S>& job, int64_t begin, int64_t end, S* zeros) {
  const int64_t C = job.shape.rows, inner = job.shape.inner, columns = job.columns, pitch = job.pitch;
  S *const ratio = zeros + pitch, *const scaled = ratio + RING * pitch;
  std::fill(zeros, zeros + columns, S(0));
  const S* p[FUSED];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t column = index % job.tiles * columns, n = std::min(columns, inner - column);
    const int64_t start = index / job.tiles * C * inner + column;
    for (int64_t c = 0; c < C + (job.grad ? job.before : 0); ++c) {
      if (c < C) {
        const int64_t at = start + c * inner, slot = c % RING * pitch;
        for (int64_t j = 0; j < FUSED; ++j) {
          const int64_t row = c - job.before + j;
          p[j] = row >= 0 && row < C ? job.x + start + row * inner : zeros;
        }
        if (job.estimated) {
          estimated_row(job, p, start, c, n, scaled, ratio, zeros);
          continue;
        }
        if (job.grad) ratio_row(job, p, job.x + at, job.grad + at, scaled + slot, ratio + slot, n);
        else forward_row(job, p, job.x + at, job.out + at, n);
      }
      // The window of row i, mirrored: rows i − after … i + before, of which c is the last.
      const int64_t i = c - job.before, at = start + i * inner;
      if (job.grad && i >= 0) {
        for (int64_t j = 0; j < FUSED; ++j) {
          const int64_t row = i - job.after + j;
          p[j] = row >= 0 && row < C ? ratio + row % RING * pitch : zeros;
        }
        gather_row(job, p, job.x + at, scaled + i % RING * pitch, job.out + at, n);
      }
    }
  }
}

// Elements of scratch that one thread needs.
template <class T>
int64_t scratch_size(const Job<T>& job) {
  if (job.by_pixels) return job.grad ? 4 * (job.shape.rows + FUSED - 1) : 1;
  return job.by_rows ? (1 + 2 * RING) * job.pitch : (job.grad ? 4 : 2) * job.batch * job.item;
}

template <class T, class S>
void run(const Job<T>& job, int64_t begin, int64_t end, S* q) {
  if constexpr (std::is_same_v<T, S>) {
    if (job.by_rows) return run_rows(job, begin, end, q);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (job.by_pixels) {
      const int64_t pixels = std::min(end * job.batch, job.shape.outer) - begin * job.batch;
      const int64_t at = begin * job.batch * job.shape.rows;
      if (job.grad) return three_quarters::backward_pixels(job, job.x + at, job.grad + at, job.out + at, pixels, q);
      return three_quarters::forward_pixels(job, job.x + at, job.out + at, pixels);
    }
  }
  const int64_t size = job.batch * job.item;
  for (int64_t index = begin; index < end; ++index) {
    const Block b = block_at(job, index);
    if (job.grad) backward_block(job, b, q, q + size, q + 2 * size, q + 3 * size);
    else forward_block(job, b, q, q + size);
  }
}

// Cut the tensor into blocks of about `budget` elements. The cut depends on the shape alone.
template <class T>
void plan(Job<T>& job, int64_t budget) {
  const Shape& s = job.shape;
  const bool estimates =
      std::is_same_v<T, float> && job.fused && job.power == Power::three_quarters && avx2_and_nothing_wider();
  job.estimated = job.by_pixels = estimates && s.inner == 1 && s.rows >= 8 && s.rows <= budget;
  job.by_rows = false;
  if (job.by_pixels) {
    job.tiles = job.columns = job.chunks = 1;
    job.chunk = s.rows;
    job.batch = budget / s.rows;
    job.blocks = (s.outer + job.batch - 1) / job.batch;
    return;
  }
  job.by_rows = std::is_same_v<T, typename Work<T>::type> && job.fused && s.inner >= 48;
  if (job.by_rows) {
    // Wide tiles read memory in order; FUSED rows of one still fit into the nearest cache.
    job.tiles = (s.inner + 1023) / 1024;
    job.columns = ((s.inner + job.tiles - 1) / job.tiles + 15) / 16 * 16;
    job.tiles = (s.inner + job.columns - 1) / job.columns;
    job.pitch = job.columns + 16;  // rows a power of two apart would share the same few lines of a cache
    job.batch = 1, job.chunk = s.rows, job.chunks = 1;
    job.blocks = s.outer * job.tiles;
    job.estimated = estimates && s.inner - (job.tiles - 1) * job.columns >= 8;
    return;
  }
  const int64_t reach = (job.taps - 1) * (job.grad ? 2 : 1);
  const int64_t least = std::min(s.rows, std::max<int64_t>(16, 4 * reach));
  job.columns = s.inner;
  const int64_t room = std::max<int64_t>(budget / (least * s.width) / 16 * 16, 32);
  if (s.inner > room + room / 2) {
    job.tiles = (s.inner + room - 1) / room;
    job.columns = ((s.inner + job.tiles - 1) / job.tiles + 15) / 16 * 16;
  }
  job.tiles = (s.inner + job.columns - 1) / job.columns;
  job.chunk = std::clamp<int64_t>(budget / (job.columns * s.width), least, s.rows);
  job.chunks = (s.rows + job.chunk - 1) / job.chunk;
  job.chunk = (s.rows + job.chunks - 1) / job.chunks;
  job.pitch = job.wide() * job.columns;
  job.item = (job.chunk + reach) * job.pitch;
  job.batch = job.tiles * job.chunks > 1 ? 1 : std::clamp<int64_t>(budget / job.item, 1, s.outer);
  job.blocks = (s.outer + job.batch - 1) / job.batch * job.tiles * job.chunks;
}

template <class T>
void launch(const Tensor& input, const Tensor* grad, Tensor& out, const Shape& shape, const Window& window) {
  Job<T> job;
  job.x = input.const_data_ptr<T>();
  job.grad = grad ? grad->const_data_ptr<T>() : nullptr;
  job.out = out.mutable_data_ptr<T>();
  job.shape = shape;
  // A window cannot reach further than the other end.
  job.before = std::min(window.before, shape.rows - 1);
  job.after = std::min(window.after, shape.rows - 1);
  job.half = std::min(window.half, shape.width - 1);
  job.taps = job.before + job.after + 1;
  job.fused = job.half == 0 && job.taps == FUSED;
  job.a = window.a, job.k = window.k, job.factor = 2 * window.a * window.beta;
  job.beta = window.beta;
  if constexpr (!std::is_same_v<T, double>) {
    uint32_t bits;
    std::memcpy(&bits, &job.beta, 4);
    bits &= 0xffffff00u;
    std::memcpy(&job.beta, &bits, 4);
  }
  job.beta_rest = window.beta - job.beta;
  job.power = window.beta == 0.5    ? Power::half
              : window.beta == 0.75 ? Power::three_quarters
              : window.beta == 1.0  ? Power::one
                                    : Power::general;
  plan(job, 4096);
  // A thread takes at least 32768 elements. Its scratch is made here: what runs in the loop must not throw.
  const int64_t least = std::max<int64_t>(32768 / (job.batch * job.chunk * shape.width * job.columns), 1);
  const int64_t lanes = std::clamp<int64_t>(job.blocks / least, 1, torch::stable::get_num_threads());
  const int64_t size = scratch_size(job);
  const Buffer<typename Work<T>::type> scratch(lanes * size);
  parallel(lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      run(job, job.blocks * i / lanes, job.blocks * (i + 1) / lanes, scratch.get() + i * size);
  });
}

// Whether the elements of a tensor fill one piece of memory, in whatever order of dimensions.
bool is_dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// How a dense tensor lies in memory around the dimensions of the window; nothing where those two do not lie together.
std::optional<Shape> seen(const Tensor& x, int64_t dim, bool spatial) {
  const int64_t count = x.numel();
  if (!spatial) {
    const int64_t C = x.size(dim);
    // The stride of a dimension of size 1 means nothing: all elements are alike.
    const int64_t inner = C == 1 ? count : x.stride(dim);
    return Shape{count / (C * inner), C, 1, inner};
  }
  int64_t tall = x.dim() - 2, wide = x.dim() - 1;
  if (x.size(tall) == 1 && x.size(wide) == 1) return Shape{1, 1, 1, count};
  // The window is a square: rows and columns may change places.
  if (x.size(tall) == 1 || (x.size(wide) != 1 && x.stride(tall) < x.stride(wide))) std::swap(tall, wide);
  const int64_t H = x.size(tall), W = x.size(wide);
  if (W == 1) return Shape{count / (H * x.stride(tall)), H, 1, x.stride(tall)};
  if (x.stride(tall) != W * x.stride(wide)) return std::nullopt;
  return Shape{count / (H * x.stride(tall)), H, W, x.stride(wide)};
}

Tensor normalize(Tensor x, const Tensor* grad, int64_t dim, bool spatial, const Window& window) {
  bool fits = window.before >= 0 && window.after >= 0 && (spatial ? x.dim() >= 2 : dim >= 0 && dim < x.dim());
  if (grad) {
    fits = fits && grad->scalar_type() == x.scalar_type() && grad->dim() == x.dim();
    for (int64_t d = 0; fits && d < x.dim(); ++d) fits = grad->size(d) == x.size(d);
  }
  STD_TORCH_CHECK(fits, "local_response_norm: arguments that do not fit each other");
  if (x.numel() == 0) return torch::stable::empty_like(x);
  // clone keeps the order of the dimensions, contiguous does not.
  if (!is_dense(x)) x = torch::stable::clone(x);
  Tensor result = torch::stable::empty_like(x), out = result;
  std::optional<Shape> shape = seen(x, dim, spatial);
  if (!shape) {
    x = torch::stable::contiguous(x);
    out = torch::stable::empty_like(x);
    shape = seen(x, dim, spatial);
  }
  Tensor g = x;
  if (grad) {
    g = *grad;
    if (!same_layout(g, x)) {
      g = torch::stable::empty_like(x);
      torch::stable::copy_(g, *grad);
    }
  }
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch<T>(x, grad ? &g : nullptr, out, *shape, window);
  });
  if (out.get() != result.get()) torch::stable::copy_(result, out);
  return result;
}

Tensor forward(const Tensor& input, int64_t dim, int64_t before, int64_t after, bool spatial, double a, double beta,
               double k) {
  return normalize(input, nullptr, dim, spatial, {before, after, spatial ? before : 0, a, beta, k});
}

Tensor backward(const Tensor& grad, const Tensor& input, int64_t dim, int64_t before, int64_t after, bool spatial,
                double a, double beta, double k) {
  return normalize(input, &grad, dim, spatial, {before, after, spatial ? before : 0, a, beta, k});
}

}  // namespace
}  // namespace pliant

STABLE_TORCH_LIBRARY_IMPL(pliant, CPU, m) {
  m.impl("local_response_norm", TORCH_BOX(&pliant::forward));
  m.impl("local_response_norm_backward", TORCH_BOX(&pliant::backward));
}
