// Calls every kernel once under callgrind and dumps its instruction counts under the case's name: see count.py.
//   valgrind --tool=callgrind --instr-atstart=no driver path/to/_C.so
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <valgrind/callgrind.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The library's schemas are declared by its Python files, which are not loaded here.
STABLE_TORCH_LIBRARY_FRAGMENT(pliant, m) {
#define GEOMETRY "int[] stride, SymInt[] padding, int[] dilation, Tensor? mask, bool clamp"
  m.def("deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");
  m.def("deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, " GEOMETRY
        ", int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
#undef GEOMETRY
#define WINDOW "int dim, int before, int after, bool spatial, float a, float beta, float k) -> Tensor"
  m.def("local_response_norm(Tensor input, " WINDOW);
  m.def("local_response_norm_backward(Tensor grad, Tensor input, " WINDOW);
#undef WINDOW
#define BINS \
  "Tensor rois, Tensor? offset, SymInt[] output_size, float scale, SymInt ratio, float gamma, Tensor? mask"
  m.def("deform_roi_pool(Tensor input, " BINS ") -> Tensor");
  m.def("deform_roi_pool_backward(Tensor grad, Tensor input, " BINS ", int wanted) -> (Tensor, Tensor, Tensor)");
#undef BINS
  m.def("nms(Tensor boxes, Tensor scores, Tensor? classes, float iou_threshold) -> Tensor");
}

namespace {

// The same numbers in every run: a linear congruential generator, uniform in [low, high).
double draw(double low, double high) {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return low + (high - low) * double(state >> 11) / double(1ull << 53);
}

Tensor random(std::vector<int64_t> shape, double low, double high, bool channels_last = false,
              ScalarType type = ScalarType::Float) {
  Tensor t = torch::stable::empty(shape, type, std::nullopt, std::nullopt, std::nullopt,
                                  channels_last ? std::optional(torch::headeronly::MemoryFormat::ChannelsLast)
                                                : std::nullopt);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const float value = float(draw(low, high));
    if (type == ScalarType::BFloat16)
      static_cast<BFloat16*>(t.mutable_data_ptr())[i] = BFloat16(value);
    else
      static_cast<float*>(t.mutable_data_ptr())[i] = value;
  }
  return t;
}

Tensor boxes(int64_t count, bool indexed) {
  Tensor t = random({count, indexed ? 5 : 4}, 0, 1);
  float* row = static_cast<float*>(t.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i, row += indexed ? 5 : 4) {
    float* box = row + (indexed ? 1 : 0);
    if (indexed) row[0] = 0;
    const float x = 180 * box[0], y = 180 * box[1], w = 8 + 60 * box[2], h = 8 + 60 * box[3];
    box[0] = x, box[1] = y, box[2] = x + w, box[3] = y + h;
  }
  return t;
}

// Call an operator as torch's dispatcher does, twice: the second time counted.
template <int Outputs = 1, class... Arguments>
void count(const char* name, const char* op, const Arguments&... arguments) {
  for (int turn = 0; turn < 2; ++turn) {
    std::array<StableIValue, sizeof...(Arguments) < 8 ? 8 : sizeof...(Arguments)> stack{};
    size_t i = 0;
    ((stack[i++] = torch::stable::detail::from(arguments)), ...);
    if (turn == 1) {
      CALLGRIND_ZERO_STATS;
      CALLGRIND_START_INSTRUMENTATION;
    }
    const auto failed = torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION);
    if (turn == 1) {
      CALLGRIND_STOP_INSTRUMENTATION;
      CALLGRIND_DUMP_STATS_AT(name);
    }
    if (failed) {
      std::fprintf(stderr, "%s: %s failed\n", name, op);
      std::exit(1);
    }
    for (int o = 0; o < Outputs; ++o) torch::stable::detail::to<Tensor>(stack[o]);
  }
}

void deform_conv2d(const std::string& name, int64_t C, int64_t side, int64_t O, int64_t groups, bool last,
                   ScalarType type = ScalarType::Float, bool backward = true) {
  const Tensor x = random({1, C, side, side}, -1, 1, last, type), w = random({O, C / groups, 3, 3}, -1, 1, false, type);
  const Tensor offset = random({1, 18, side, side}, -3, 3, false, type);
  const std::optional<Tensor> bias = random({O}, -1, 1, false, type), mask = random({1, 9, side, side}, 0, 1, false, type);
  const std::vector<int64_t> one{1, 1};
  count((name + " forward").c_str(), "pliant::deform_conv2d", x, offset, w, bias, one, one, one, mask, false);
  const Tensor grad = random({1, O, side, side}, -1, 1, last, type);
  if (backward)
    count<4>((name + " backward").c_str(), "pliant::deform_conv2d_backward", grad, x, offset, w, one, one, one, mask,
             false, int64_t(15));
}

void local_response_norm(const std::string& name, int64_t C, int64_t side, bool last) {
  const Tensor x = random({1, C, side, side}, -3, 3, last), grad = random({1, C, side, side}, -1, 1, last);
  const int64_t dim = 1, two = 2;
  count((name + " forward").c_str(), "pliant::local_response_norm", x, dim, two, two, false, 1e-4, 0.75, 1.0);
  count((name + " backward").c_str(), "pliant::local_response_norm_backward", grad, x, dim, two, two, false, 1e-4, 0.75,
        1.0);
}

void deform_roi_pool(const std::string& name, int64_t C, int64_t rois, bool last) {
  const Tensor x = random({1, C, 32, 32}, -1, 1, last), where = boxes(rois, true), grad = random({rois, C, 7, 7}, -1, 1, last);
  const std::optional<Tensor> offset = random({rois, 2, 7, 7}, -1, 1), mask = random({rois, 1, 7, 7}, 0, 1);
  const std::vector<int64_t> bins{7, 7};
  const int64_t two = 2;
  count((name + " forward").c_str(), "pliant::deform_roi_pool", x, where, offset, bins, 0.125, two, 0.1, mask);
  count<3>((name + " backward").c_str(), "pliant::deform_roi_pool_backward", grad, x, where, offset, bins, 0.125, two,
           0.1, mask, int64_t(7));
}

}  // namespace

int main(int arguments, char** argument) {
  if (arguments != 2 || !dlopen(argument[1], RTLD_NOW)) {
    std::fprintf(stderr, "usage: driver path/to/_C.so\n%s\n", arguments == 2 ? dlerror() : "");
    return 1;
  }
  for (bool last : {false, true}) {
    const std::string layout = last ? " channels_last" : " nchw";
    deform_conv2d("deform_conv2d" + layout, 64, 28, 64, 1, last);
    local_response_norm("lrn" + layout, 64, 28, last);
    deform_roi_pool("deform_roi_pool" + layout, 64, 32, last);
  }
  deform_conv2d("deform_conv2d bfloat16 channels_last", 64, 28, 64, 1, true, ScalarType::BFloat16);
  deform_conv2d("deform_conv2d depthwise channels_last", 64, 28, 64, 64, true);
  deform_conv2d("deform_conv2d 3 channels nchw", 3, 56, 32, 1, false);
  const Tensor where = boxes(1000, false), scores = random({1000}, 0, 1);
  count("nms", "pliant::nms", where, scores, std::optional<Tensor>(), 0.5);
}
