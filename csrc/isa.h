// Instruction levels: kernels are plain loops that the compiler turns into vectors, compiled once per level. Which
// level runs is decided once, when the library is loaded: the highest that the processor has, or the one that the
// environment variable PLIANT_LEVEL names.
#pragma once

#include <cstdint>
#include <type_traits>

#if !defined(__x86_64__)
#define PLIANT_LEVELS 0
#elif defined(__clang__) ? __clang_major__ < 18 : __GNUC__ < 12
#warning "pliant: this compiler does not know the instruction levels of x86-64 (g++ 12 and clang 18 do): baseline only"
#define PLIANT_LEVELS 0
#else
#define PLIANT_LEVELS 1
#endif

// For functions of one level. x86-64-v3 has AVX2 and FMA, x86-64-v4 has AVX-512 (F, BW, CD, DQ, VL).
#if PLIANT_LEVELS
#define PLIANT_V3 __attribute__((target("arch=x86-64-v3")))
#define PLIANT_V4 __attribute__((target("arch=x86-64-v4")))
#endif

// The body of a function that runs the same statements at every level: each copy is a lambda compiled for its level.
#if PLIANT_LEVELS
#define PLIANT_AT_EVERY_LEVEL(BODY)                          \
  {                                                          \
    if (level() == Level::v4) return [&]() PLIANT_V4 BODY(); \
    if (level() == Level::v3) return [&]() PLIANT_V3 BODY(); \
    BODY                                                     \
  }
#else
#define PLIANT_AT_EVERY_LEVEL(BODY) BODY
#endif

// What a function of one level calls in its loops must be inlined into it, or it is compiled for the baseline.
#define PLIANT_INLINE inline __attribute__((always_inline))

// Binds a kernel to the types that it is compiled for: PLIANT_KERNEL(SIGNATURE, BODY, (float, float), (double, double))
// defines the overloads SIGNATURE(float, float) and SIGNATURE(double, double), each for every level. BODY calls a
// PLIANT_INLINE template. PLIANT_DECLARE declares the same overloads for other files.
#define PLIANT_KERNEL(SIGNATURE, BODY, ...) PLIANT_REPEAT(PLIANT_DEFINE_NEXT(SIGNATURE, BODY, __VA_ARGS__))
#define PLIANT_DECLARE(SIGNATURE, ...) PLIANT_REPEAT(PLIANT_DECLARE_NEXT(SIGNATURE, __VA_ARGS__))

// The first list of types, then the name of the macro again: each pass of PLIANT_REPEAT expands one more.
#define PLIANT_DEFINE_NEXT(SIGNATURE, BODY, TYPES, ...) \
  SIGNATURE TYPES PLIANT_AT_EVERY_LEVEL(BODY) __VA_OPT__(PLIANT_DEFINE_NAME PLIANT_EMPTY(SIGNATURE, BODY, __VA_ARGS__))
#define PLIANT_DECLARE_NEXT(SIGNATURE, TYPES, ...) \
  SIGNATURE TYPES;                                 \
  __VA_OPT__(PLIANT_DECLARE_NAME PLIANT_EMPTY(SIGNATURE, __VA_ARGS__))
#define PLIANT_DEFINE_NAME() PLIANT_DEFINE_NEXT
#define PLIANT_DECLARE_NAME() PLIANT_DECLARE_NEXT
#define PLIANT_EMPTY ()
#define PLIANT_REPEAT(...) PLIANT_REPEAT_4(PLIANT_REPEAT_4(__VA_ARGS__))
#define PLIANT_REPEAT_4(...) PLIANT_REPEAT_2(PLIANT_REPEAT_2(__VA_ARGS__))
#define PLIANT_REPEAT_2(...) PLIANT_REPEAT_1(PLIANT_REPEAT_1(__VA_ARGS__))
#define PLIANT_REPEAT_1(...) __VA_ARGS__

namespace pliant {

enum class Level { baseline = 0, v3 = 3, v4 = 4 };

// The level that runs.
extern const Level kLevel;
inline Level level() {
  return kLevel;
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
