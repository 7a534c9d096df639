// Scratch memory: buffers, and arenas of several arrays.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pliant {

// More values than any memory holds, so few that the products and sums of the bytes of such numbers do not overflow.
inline constexpr int64_t kMostValues = int64_t(1) << 48;

// Whether the product of sizes is a number of values that memory could hold. Tensors without elements, and expanded
// ones, may have any sizes, whose product overflows.
inline bool could_hold(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product) || product > kMostValues)
      return false;
  return true;
}

// The bytes of `count` values.
template <class T>
size_t bytes_of(int64_t count) {
  if (count < 0 || count > kMostValues) throw std::bad_alloc();
  return size_t(count) * sizeof(T);
}

// Ask for huge pages within memory that is about to be written: on a virtual machine the first touch of a fresh page
// costs microseconds, more than computing the values that go into it. Pages that have been touched stay as they are.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge,
                  last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Uninitialised memory, aligned to cache lines, in huge pages where it is large.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    constexpr size_t kHuge = size_t(2) << 20;
    const size_t needed = bytes_of<T>(count), align = needed < kHuge ? 64 : kHuge,
                 bytes = (std::max<size_t>(needed, 1) + align - 1) / align * align;
    data_ = static_cast<T*>(std::aligned_alloc(align, bytes));
    if (!data_) throw std::bad_alloc();
    ask_for_huge_pages(data_, bytes);
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

// Several arrays in one buffer, each aligned to cache lines. `reserve` notes a pointer, which must not move before
// `allocate` sets it. Both are called before the parallel loop, which must not throw.
class Arena {
 public:
  template <class T>
  void reserve(T*& piece, int64_t count) {
    pieces_.push_back({reinterpret_cast<void**>(&piece), bytes_});
    bytes_ = bytes_of<char>(bytes_ + (bytes_of<T>(count) + 63) / 64 * 64);
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

}  // namespace pliant
