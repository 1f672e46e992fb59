// Products of pairs of bfloat16 on AVX-512 with BF16.
#pragma once

#include "common/simd/avx512.h"

namespace VISION_SSM_ISA {

constexpr bool MULTIPLIES_PAIRS = true;
// c + the sum of a lane's two products, for lanes that hold a pair each.
inline Vec add_products(Vec a, Vec b, Vec c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// Lanes of a and b as bfloat16, in pairs.
inline Vec paired(Vec a, Vec b) {
    const auto narrowed = [](Vec x) {
        return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
    };
    return {_mm512_castsi512_ps(_mm512_or_si512(narrowed(a), _mm512_slli_epi32(narrowed(b), 16)))};
}

}  // namespace VISION_SSM_ISA
