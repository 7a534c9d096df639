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
#define CONVOLUTION "Tensor input, Tensor offset, Tensor weight, "
  for (const std::string name : {"deform_conv2d", "deform_conv3d"}) {
    m.def((name + "(" CONVOLUTION "Tensor? bias, " GEOMETRY ") -> Tensor").c_str());
    m.def((name + "_backward(Tensor grad, " CONVOLUTION GEOMETRY ", int wanted) -> (Tensor, Tensor, Tensor, Tensor)")
              .c_str());
  }
#undef CONVOLUTION
#undef GEOMETRY
#define SAMPLES \
  "Tensor value, SymInt[] spatial_shapes, SymInt[] level_start_index, Tensor sampling_locations, Tensor " \
  "attention_weights, int[] points, bool discrete"
  m.def("ms_deform_attn(" SAMPLES ") -> Tensor");
  m.def("ms_deform_attn_backward(Tensor grad, " SAMPLES ", int wanted) -> (Tensor, Tensor, Tensor)");
#undef SAMPLES
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

// A map of `axes` sides of the same length, with kernels of 3 and offsets of up to three pixels.
void deform_conv(const std::string& name, size_t axes, int64_t C, int64_t side, int64_t O, int64_t groups, bool last,
                 ScalarType type = ScalarType::Float) {
  const std::string op = "pliant::deform_conv" + std::to_string(axes) + "d";
  const int64_t taps = axes == 2 ? 9 : 27;
  auto map = [&](int64_t channels, double low, double high, bool last) {
    std::vector<int64_t> shape{1, channels};
    shape.resize(2 + axes, side);
    return random(shape, low, high, last, type);
  };
  std::vector<int64_t> filters{O, C / groups};
  filters.resize(2 + axes, 3);
  const Tensor x = map(C, -1, 1, last), w = random(filters, -1, 1, false, type);
  const Tensor offset = map(int64_t(axes) * taps, -3, 3, false);
  const std::optional<Tensor> bias = random({O}, -1, 1, false, type), mask = map(taps, 0, 1, false);
  const std::vector<int64_t> one(axes, 1);
  count((name + " forward").c_str(), op.c_str(), x, offset, w, bias, one, one, one, mask, false);
  const Tensor grad = map(O, -1, 1, last);
  count<4>((name + " backward").c_str(), (op + "_backward").c_str(), grad, x, offset, w, one, one, one, mask, false,
           int64_t(15));
}

// Locations anywhere in the levels: heads are copied where queries are many.
void ms_deform_attn(const std::string& name, int64_t queries, int64_t heads, int64_t channels) {
  const std::vector<int64_t> shapes{20, 24, 10, 12}, starts{0, 480}, points;
  const Tensor value = random({1, 600, heads, channels}, -1, 1), grad = random({1, queries, heads * channels}, -1, 1);
  const Tensor places = random({1, queries, heads, 2, 4, 2}, 0, 1), weights = random({1, queries, heads, 2, 4}, 0, 1);
  count((name + " forward").c_str(), "pliant::ms_deform_attn", value, shapes, starts, places, weights, points, false);
  count<3>((name + " backward").c_str(), "pliant::ms_deform_attn_backward", grad, value, shapes, starts, places,
           weights, points, false, int64_t(7));
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
    deform_conv("deform_conv2d" + layout, 2, 64, 28, 64, 1, last);
    local_response_norm("lrn" + layout, 64, 28, last);
    deform_roi_pool("deform_roi_pool" + layout, 64, 32, last);
  }
  deform_conv("deform_conv2d bfloat16 channels_last", 2, 64, 28, 64, 1, true, ScalarType::BFloat16);
  deform_conv("deform_conv2d depthwise channels_last", 2, 64, 28, 64, 64, true);
  deform_conv("deform_conv2d 3 channels nchw", 2, 3, 56, 32, 1, false);
  deform_conv("deform_conv3d ncdhw", 3, 32, 10, 32, 1, false);
  ms_deform_attn("ms_deform_attn encoder", 600, 4, 32);
  ms_deform_attn("ms_deform_attn decoder", 30, 8, 16);
  const Tensor where = boxes(1000, false), scores = random({1000}, 0, 1);
  count("nms", "pliant::nms", where, scores, std::optional<Tensor>(), 0.5);
}
