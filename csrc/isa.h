// Instruction levels: kernels are plain loops that the compiler turns into vectors, compiled once per level; the loader
// picks the level of the machine.
#pragma once

#include <cstdint>
#include <type_traits>

#if !defined(__x86_64__) || !defined(__linux__) || defined(__SANITIZE_ADDRESS__)
#define PLIANT_LEVELS 0
#elif defined(__clang__) ? __clang_major__ < 18 : __GNUC__ < 12
#warning "pliant: this compiler cannot clone functions per instruction level (g++ 12 and clang 18 can): baseline only"
#define PLIANT_LEVELS 0
#else
#define PLIANT_LEVELS 1
#endif
#if PLIANT_LEVELS
#define PLIANT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PLIANT_CLONES
#endif

// Cloning does not extend to callees: everything that a clone calls in its loops must be inlined into it.
#define PLIANT_INLINE inline __attribute__((always_inline))

// For functions written in AVX2, which are called only where `avx2_and_nothing_wider` is true.
#if defined(__x86_64__)
#define PLIANT_AVX2 __attribute__((target("avx2,fma")))
#else
#define PLIANT_AVX2
#endif

// Binds a kernel to the types that it is compiled for: PLIANT_KERNEL(SIGNATURE, BODY, (float, float), (double, double))
// defines the overloads SIGNATURE(float, float) and SIGNATURE(double, double), each for every level. Clones cannot be
// templates, so BODY calls a PLIANT_INLINE template. PLIANT_DECLARE declares the same overloads for other files.
#define PLIANT_KERNEL(SIGNATURE, BODY, ...) PLIANT_REPEAT(PLIANT_DEFINE_NEXT(SIGNATURE, BODY, __VA_ARGS__))
#define PLIANT_DECLARE(SIGNATURE, ...) PLIANT_REPEAT(PLIANT_DECLARE_NEXT(SIGNATURE, __VA_ARGS__))

// The first list of types, then the name of the macro again: each pass of PLIANT_REPEAT expands one more.
#define PLIANT_DEFINE_NEXT(SIGNATURE, BODY, TYPES, ...) \
  PLIANT_CLONES SIGNATURE TYPES BODY __VA_OPT__(PLIANT_DEFINE_NAME PLIANT_EMPTY (SIGNATURE, BODY, __VA_ARGS__))
#define PLIANT_DECLARE_NEXT(SIGNATURE, TYPES, ...) \
  SIGNATURE TYPES; \
  __VA_OPT__(PLIANT_DECLARE_NAME PLIANT_EMPTY (SIGNATURE, __VA_ARGS__))
#define PLIANT_DEFINE_NAME() PLIANT_DEFINE_NEXT
#define PLIANT_DECLARE_NAME() PLIANT_DECLARE_NEXT
#define PLIANT_EMPTY ()
#define PLIANT_REPEAT(...) PLIANT_REPEAT_4(PLIANT_REPEAT_4(__VA_ARGS__))
#define PLIANT_REPEAT_4(...) PLIANT_REPEAT_2(PLIANT_REPEAT_2(__VA_ARGS__))
#define PLIANT_REPEAT_2(...) PLIANT_REPEAT_1(PLIANT_REPEAT_1(__VA_ARGS__))
#define PLIANT_REPEAT_1(...) __VA_ARGS__

namespace pliant {

// Whether to run functions written in AVX2. Processors with AVX-512 run the plain loops and torch's products instead:
// whether AVX2 is faster than those has not been measured.
inline bool avx2_and_nothing_wider() {
#if defined(__x86_64__)
  static const bool yes =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !__builtin_cpu_supports("avx512f");
  return yes;
#else
  return false;
#endif
}

// Call f(width, c) for blocks of channels [c, c + width) that cover n channels: of eight AVX2 registers, then of one,
// then single channels. The width is a compile-time constant, so that sums of a block stay in registers.
template <class A, class F>
PLIANT_INLINE void in_blocks(int64_t n, F&& f) {
  constexpr int kWide = 256 / sizeof(A), kNarrow = 32 / sizeof(A);
  int64_t c = 0;
  for (; c + kWide <= n; c += kWide) f(std::integral_constant<int, kWide>{}, c);
  for (; c + kNarrow <= n; c += kNarrow) f(std::integral_constant<int, kNarrow>{}, c);
  for (; c < n; ++c) f(std::integral_constant<int, 1>{}, c);
}

}  // namespace pliant
