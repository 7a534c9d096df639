// Scratch memory: buffers, and arenas of several arrays.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pliant {

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
    const size_t align = count * sizeof(T) < kHuge ? 64 : kHuge,
                 bytes = (std::max<size_t>(count * sizeof(T), 1) + align - 1) / align * align;
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

}  // namespace pliant
