// Local response normalization, y = x·S^−β with S = k + a·Σ x² over a window W, and its gradient
//   dx_i = g_i·S_i^−β − 2aβ·x_i·Σ_{j: i∈W(j)} g_j·x_j·S_j^(−β−1).
#include <vector>

#include "../memory.h"
#include "../threads.h"
#include "blocks.h"
#include "rows.h"
#include "three_quarters.h"

namespace pliant {
namespace {

// Run blocks [begin, end) of a job.
template <class T, class S>
void run(const Job<T>& job, int64_t begin, int64_t end, S* scratch) {
  if constexpr (std::is_same_v<T, S>)
    if (job.by_rows) return run_rows(job, begin, end, scratch);
#if PLIANT_LEVELS
  if constexpr (std::is_same_v<T, float>)
    if (job.by_pixels) return three_quarters::run_pixels(job, begin, end, scratch);
#endif
  run_blocks(job, begin, end, scratch);
}

template <class T>
void launch(const Tensor& input, const Tensor* grad, Tensor& out, const Layout& layout, const Window& window) {
  const Job<T> job(layout, window, input.const_data_ptr<T>(), grad ? grad->const_data_ptr<T>() : nullptr,
                   out.mutable_data_ptr<T>());
  // A thread takes at least 32768 elements.
  const int64_t least = std::max<int64_t>(32768 / (job.batch * job.chunk * layout.width * job.columns), 1);
  const int64_t lanes = lanes_for(job.blocks / least), size = job.scratch();
  const Buffer<typename Work<T>::type> scratch(lanes * size);
  for_lanes(lanes, job.blocks,
            [&](int64_t lane, int64_t begin, int64_t end) { run(job, begin, end, scratch.get() + lane * size); });
}

// Whether the elements of a tensor fill one piece of memory, in any order of dimensions.
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

// The layout of a dense tensor around the dimensions of the window; none where those two are not adjacent in memory.
std::optional<Layout> layout_of(const Tensor& x, int64_t dim, bool spatial) {
  const int64_t count = x.numel();
  if (!spatial) {
    const int64_t C = x.size(dim);
    // The stride of a dimension of size 1 means nothing: every element is a window of its own.
    const int64_t inner = C == 1 ? count : x.stride(dim);
    return Layout{count / (C * inner), C, 1, inner};
  }
  int64_t tall = x.dim() - 2, wide = x.dim() - 1;
  if (x.size(tall) == 1 && x.size(wide) == 1) return Layout{1, 1, 1, count};
  // The window is a square: rows and columns may change places.
  if (x.size(tall) == 1 || (x.size(wide) != 1 && x.stride(tall) < x.stride(wide))) std::swap(tall, wide);
  const int64_t H = x.size(tall), W = x.size(wide);
  if (W == 1) return Layout{count / (H * x.stride(tall)), H, 1, x.stride(tall)};
  if (x.stride(tall) != W * x.stride(wide)) return std::nullopt;
  return Layout{count / (H * x.stride(tall)), H, W, x.stride(wide)};
}

Tensor normalize(Tensor x, const Tensor* grad, int64_t dim, bool spatial, const Window& window) {
  constexpr const char* kOp = "local_response_norm";
  require_fit(is_floating(x) && (!spatial || x.dim() >= 2), kOp, "input");
  require_fit(spatial || (dim >= 0 && dim < x.dim()), kOp, "dim");
  require_fit(window.before >= 0, kOp, "before");
  require_fit(window.after >= 0, kOp, "after");
  if (grad) {
    bool same = grad->scalar_type() == x.scalar_type() && grad->dim() == x.dim();
    for (int64_t d = 0; same && d < x.dim(); ++d) same = grad->size(d) == x.size(d);
    require_fit(same, kOp, "grad");
  }
  if (x.numel() == 0) return torch::stable::empty_like(x);
  // clone keeps the order of the dimensions, contiguous does not.
  if (!is_dense(x)) x = torch::stable::clone(x);
  Tensor result = torch::stable::empty_like(x), out = result;
  std::optional<Layout> layout = layout_of(x, dim, spatial);
  if (!layout) {
    x = torch::stable::contiguous(x);
    out = torch::stable::empty_like(x);
    layout = layout_of(x, dim, spatial);
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
    launch<T>(x, grad ? &g : nullptr, out, *layout, window);
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
