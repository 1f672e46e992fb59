// Loops whose counters are constants, so that arrays indexed by them live in registers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace VISION_SSM_ISA {

#if defined(__GNUC__) || defined(__clang__)
#define VSSM_INLINE inline __attribute__((always_inline))
#else
#define VSSM_INLINE inline
#endif

template <class F, int... I>
VSSM_INLINE void unroll(F&& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}

// Call f(0), f(1), ... f(Count - 1) with constants: arrays indexed by them live in registers, which a loop that the
// compiler unrolls later does not guarantee.
template <int Count, class F>
VSSM_INLINE void unroll(F&& f) {
    unroll(f, std::make_integer_sequence<int, Count>{});
}

// Call step(first_state, constant) over all states in groups of at most Most, with the group size as a constant, so
// that a group's states stay in registers.
template <int Most, class F>
inline void for_state_groups(int64_t states, F&& step) {
    int64_t n = 0;
    for (; states - n >= Most; n += Most) step(n, std::integral_constant<int, Most>{});
    if constexpr (Most > 1) {
        if (states > n)
            for_state_groups<Most / 2>(states - n, [&](int64_t at, auto size) { step(n + at, size); });
    }
}

// Call f with `value` as a constant, 1 <= value <= Most.
template <int Most, class F>
void with_constant(int64_t value, F&& f) {
    if constexpr (Most > 1)
        if (value < Most) return with_constant<Most - 1>(value, f);
    f(std::integral_constant<int, Most>{});
}

}  // namespace VISION_SSM_ISA
