// oneDNN's local response normalization across channels, float32, NHWC: a peer, compiled and called by peers.py.
// oneDNN 2 and 3 describe a primitive in different ways; both stand here.
#include <omp.h>

#include <cstdint>
#include <dnnl.hpp>
#include <utility>

namespace {

using dnnl::memory;
using Forward = dnnl::lrn_forward::primitive_desc;
using Backward = dnnl::lrn_backward::primitive_desc;

constexpr auto kAcross = dnnl::algorithm::lrn_across_channels;

struct Lrn {
  Lrn(memory::dims sizes, bool training, int64_t size, float alpha, float beta, float k, int threads)
      : threads(threads), map(std::move(sizes), memory::data_type::f32, memory::format_tag::nhwc) {
    omp_set_num_threads(threads);
    const auto kind = training ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
    const Forward forth(cpu, kind, kAcross, map, map, size, alpha, beta, k);
#else
    const Forward forth({kind, kAcross, map, size, alpha, beta, k}, cpu);
#endif
    kept = forth.workspace_desc();
    forward = dnnl::lrn_forward(forth);
    if (!training) return;
#if DNNL_VERSION_MAJOR >= 3
    backward = dnnl::lrn_backward(Backward(cpu, kAcross, map, map, map, size, alpha, beta, k, forth));
#else
    backward = dnnl::lrn_backward(Backward({kAcross, map, map, size, alpha, beta, k}, cpu, forth));
#endif
  }

  // Without dy the output alone. Every call allocates the workspace, as a training step does; the rest is the caller's.
  void run(float* x, float* y, float* dy, float* dx) {
    omp_set_num_threads(threads);
    const auto at = [&](float* values) { return memory(map, cpu, values); };
    if (dy == nullptr) {
      forward.execute(queue, {{DNNL_ARG_SRC, at(x)}, {DNNL_ARG_DST, at(y)}});
    } else {
      const memory workspace(kept, cpu);
      forward.execute(queue, {{DNNL_ARG_SRC, at(x)}, {DNNL_ARG_DST, at(y)}, {DNNL_ARG_WORKSPACE, workspace}});
      backward.execute(queue, {{DNNL_ARG_SRC, at(x)},
                               {DNNL_ARG_DIFF_DST, at(dy)},
                               {DNNL_ARG_WORKSPACE, workspace},
                               {DNNL_ARG_DIFF_SRC, at(dx)}});
    }
    queue.wait();
  }

  int threads;
  dnnl::engine cpu{dnnl::engine::kind::cpu, 0};
  dnnl::stream queue{cpu};
  memory::desc map, kept;
  dnnl::primitive forward, backward;
};

}  // namespace

// Returns null where oneDNN refuses the case, or where another answers than this was compiled for (torch has its own).
extern "C" Lrn* lrn_create(int64_t N, int64_t C, int64_t H, int64_t W, int training, int64_t size, float alpha,
                           float beta, float k, int threads) try {
  if (dnnl_version()->major != DNNL_VERSION_MAJOR) return nullptr;
  return new Lrn({N, C, H, W}, training != 0, size, alpha, beta, k, threads);
} catch (const dnnl::error&) {
  return nullptr;
}

// Returns 0, or oneDNN's status.
extern "C" int lrn_run(Lrn* lrn, float* x, float* y, float* dy, float* dx) try {
  lrn->run(x, y, dy, dx);
  return 0;
} catch (const dnnl::error& error) {
  return error.status;
}

extern "C" void lrn_delete(Lrn* lrn) {
  delete lrn;
}
