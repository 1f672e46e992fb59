// One vector type per instruction set: W float lanes, one channel in each. Included once per compilation of the
// kernels; VISION_SSM_ISA (portable, avx2, avx512, avx512bf16) names the namespace, the compiler's flags choose the
// file.
//
// Every file of simd/ has Vec (set, load, store), + - * /, fma, maximum, where_negative, absolute, nearest,
// times_power_of_two, fold, exp2, Exp2, reciprocal and transpose_square.
#pragma once

#if defined(__AVX512F__)
#include "common/simd/avx512.h"
#elif defined(__AVX2__)
#include "common/simd/avx2.h"
#include "common/simd/generic.h"
#else
#include "common/simd/portable.h"
#include "common/simd/generic.h"
#endif
#if defined(__AVX512BF16__)
#include "common/simd/avx512bf16.h"
#endif

namespace VISION_SSM_ISA {

constexpr int W = Vec::W;

// Fold Count vectors into one. With Distance W / Count, each of them ends in that many lanes; W / Count such results,
// folded again with Distance 1, leave the sum of every vector's lanes in one lane. Which lane follows from the order of
// the folds and differs between instruction sets: probe it with known vectors.
template <int Count, int Distance = 1>
inline Vec sum_lanes(const Vec* x) {
    if constexpr (Count == 1)
        return x[0];
    else
        return fold<Distance>(sum_lanes<Count / 2, 2 * Distance>(x), sum_lanes<Count / 2, 2 * Distance>(x + Count / 2));
}

// Every lane of the result is the sum of all of x's.
template <int Distance = Vec::W / 2>
inline Vec sum_everywhere(Vec x) {
    const Vec folded = fold<Distance>(x, x);
    if constexpr (Distance == 1)
        return folded;
    else
        return sum_everywhere<Distance / 2>(folded);
}

#if !defined(__AVX512BF16__)
// Products of pairs of bfloat16 are for the processors that take one as fast as a product of floats.
constexpr bool MULTIPLIES_PAIRS = false;
Vec add_products(Vec a, Vec b, Vec c);
Vec paired(Vec a, Vec b);
#endif

}  // namespace VISION_SSM_ISA
