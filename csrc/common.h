// What every kernel includes: the stable ABI, the multi-ISA macro, dtype dispatch, the parallel loop, memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

// Plain loops, compiled for several instruction levels; the loader picks one. Clones do not reach into what they call,
// so everything under a PLIANT_CLONES function is PLIANT_INLINE.
#if !defined(__x86_64__) || !defined(__linux__) || defined(__SANITIZE_ADDRESS__)
#define PLIANT_LEVELS 0
#elif defined(__clang__) ? __clang_major__ < 18 : __GNUC__ < 12
#warning "pliant is compiled for the baseline of x86-64 alone: this compiler has no clones by level, g++ 12 has"
#define PLIANT_LEVELS 0
#else
#define PLIANT_LEVELS 1
#endif
#if PLIANT_LEVELS
#define PLIANT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PLIANT_CLONES
#endif
// What is written for AVX2 alone; see avx2_and_nothing_wider.
#if defined(__x86_64__)
#define PLIANT_AVX2 __attribute__((target("avx2,fma")))
#else
#define PLIANT_AVX2
#endif
#define PLIANT_INLINE inline __attribute__((always_inline))

namespace pliant {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether to take what is written for AVX2: whether it beats plain loops and torch's products in vectors of sixteen has
// not been measured.
inline bool avx2_and_nothing_wider() {
#if defined(__x86_64__)
  static const bool yes =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !__builtin_cpu_supports("avx512f");
  return yes;
#else
  return false;
#endif
}

// The type that coordinates, weights and sums are held in: float, and double for double.
template <class T>
struct Work {
  using type = float;
};
template <>
struct Work<double> {
  using type = double;
};

// Call f with a value of the C++ type behind `type`. Python has checked that it is one of these four.
template <class F>
void dispatch(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    default:
      STD_TORCH_CHECK(false, "dtype without a kernel");
  }
}

// A list of the schemas, `n` numbers of it.
template <size_t n>
std::array<int64_t, n> numbers(const std::vector<int64_t>& list) {
  STD_TORCH_CHECK(list.size() == n, "arguments that do not fit each other: a list of ", list.size(), " numbers, not ", n);
  std::array<int64_t, n> found;
  std::copy(list.begin(), list.end(), found.begin());
  return found;
}

// What every kernel takes.
inline bool is_floating(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Run f(begin, end) on torch's own threads; f must not throw.
template <class F>
void parallel(int64_t count, int64_t grain, F&& f) {
  if (count > 0) torch::stable::parallel_for(0, count, std::max<int64_t>(grain, 1), f);
}

// The same for work that calls a matrix product: one piece alone would run outside the pool, and the product would
// take all threads and add in another order than it does beside a second piece.
template <class F>
void parallel_products(int64_t count, F&& f) {
  parallel(std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, count); ++i) f(i);
  });
}

// Uninitialised memory of the calling function's own. Where it is large it asks for huge pages: touching a fresh page
// for the first time costs microseconds on a virtual machine, more than computing what goes into it.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    constexpr size_t kHuge = size_t(2) << 20;
    const size_t bytes = count * sizeof(T), align = bytes < kHuge ? 64 : kHuge;
    data_ = static_cast<T*>(std::aligned_alloc(align, (std::max<size_t>(bytes, 1) + align - 1) / align * align));
    if (!data_) throw std::bad_alloc();
#ifdef __linux__
    if (align == kHuge) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { std::free(data_); }
  T* get() const { return data_; }
  explicit operator bool() const { return data_; }

 private:
  T* data_ = nullptr;
};

// Aligned pieces of one buffer: made before the parallel loop, which must not throw.
class Arena {
 public:
  template <class T>
  void reserve(T*& piece, int64_t count) {
    pieces_.push_back({reinterpret_cast<void**>(&piece), bytes_});
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
  }
  void allocate() {
    memory_ = Buffer<char>(bytes_);
    for (auto& [piece, at] : pieces_) *piece = memory_.get() + at;
  }

 private:
  std::vector<std::pair<void**, size_t>> pieces_;
  size_t bytes_ = 0;
  Buffer<char> memory_;
};

// Four-dimensional memory of any of the dtypes with any strides; planes of offsets, masks, maps.
struct Planes {
  const void* data;
  ScalarType type;
  int64_t n, c, h, w;

  explicit Planes(const Tensor& t)
      : data(t.const_data_ptr()),
        type(t.scalar_type()),
        n(t.stride(0)),
        c(t.stride(1)),
        h(t.stride(2)),
        w(t.stride(3)) {}

  // out[i·step] = value at row-major position `begin + i` of plane (image, channel).
  template <class A>
  void read(int64_t image, int64_t channel, int64_t width, int64_t begin, int64_t count, A* out,
            int64_t step = 1) const {
    dispatch(type, [&](auto zero) {
      const auto* plane = static_cast<const decltype(zero)*>(data) + image * n + channel * c;
      if (h == width && w == 1 && step == 1) {
        for (int64_t i = 0; i < count; ++i) out[i] = A(plane[begin + i]);
      } else if (h == width * w) {
        for (int64_t i = 0; i < count; ++i) out[i * step] = A(plane[(begin + i) * w]);
      } else {
        for (int64_t i = 0; i < count; ++i) out[i * step] = A(plane[(begin + i) / width * h + (begin + i) % width * w]);
      }
    });
  }
};

// Layout changes go block by block.
inline constexpr int64_t kBlock = 16;

// out[i][j] = in[j][i] for four by four floats, in vectors of four.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PLIANT_SHUFFLES 1
PLIANT_INLINE void transpose_four(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
  typedef float Four __attribute__((vector_size(16)));
  Four row[4];
  for (int j = 0; j < 4; ++j) __builtin_memcpy(&row[j], in + j * in_stride, sizeof(Four));
  const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Four d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Four turned[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                          __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(out + i * out_stride, &turned[i], sizeof(Four));
}
#endif
#endif

// out[i][j] = in[j][i] for a block that fits in level-1 cache, `i` rows of `j` written whole.
template <class T, class A>
PLIANT_INLINE void transpose(T* out, int64_t out_stride, const A* in, int64_t in_stride, int64_t rows, int64_t cols) {
  int64_t i0 = 0;
#ifdef PLIANT_SHUFFLES
  if constexpr (std::is_same_v<T, float> && std::is_same_v<A, float>) {
    for (; i0 + 4 <= rows; i0 += 4) {
      int64_t j = 0;
      for (; j + 4 <= cols; j += 4)
        transpose_four(out + i0 * out_stride + j, out_stride, in + j * in_stride + i0, in_stride);
      for (; j < cols; ++j)
        for (int64_t i = i0; i < i0 + 4; ++i) out[i * out_stride + j] = in[j * in_stride + i];
    }
  }
#endif
  for (int64_t i = i0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[i * out_stride + j] = T(in[j * in_stride + i]);
}

// The same for a matrix of any size, block by block.
template <class T, class A>
void transpose_all(T* out, int64_t out_stride, const A* in, int64_t in_stride, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; i += kBlock)
    for (int64_t j = 0; j < cols; j += kBlock)
      transpose(out + i * out_stride + j, out_stride, in + j * in_stride + i, in_stride, std::min(kBlock, rows - i),
                std::min(kBlock, cols - j));
}

// What torch calls channels_last when it must choose a format for a result.
inline bool channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * t.size(d);
  }
  return true;
}

}  // namespace pliant
