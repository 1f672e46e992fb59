// Eight lanes of AVX2 with FMA.
#pragma once

#include "common/simd/bfloat16.h"

#include <immintrin.h>

namespace VISION_SSM_ISA {

struct Vec {
    static constexpr int W = 8;
    __m256 v;

    static Vec set(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
    static Vec load(const bfloat16* p) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static Vec load(const bfloat16* p, int n) {
        bfloat16 lanes[W] = {};
        std::memcpy(lanes, p, static_cast<size_t>(n) * 2);
        return load(lanes);
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
    void store(bfloat16* p) const {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
        const __m256i high = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }
    void store(bfloat16* p, int n) const {
        bfloat16 lanes[W];
        store(lanes);
        std::memcpy(p, lanes, static_cast<size_t>(n) * 2);
    }

  private:
    static __m256i mask(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static Vec widened(__m128i x) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
    }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec maximum(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec where_negative(Vec x, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, x.v)}; }
inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec nearest(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// Two factors of half the exponent each reach every float, denormals and infinity included.
inline Vec times_power_of_two(Vec a, Vec whole) {
    const Vec bounded = {_mm256_min_ps(_mm256_max_ps(whole.v, _mm256_set1_ps(-252.f)), _mm256_set1_ps(254.f))};
    const __m256i exponent = _mm256_cvtps_epi32(bounded.v);
    const __m256i half = _mm256_srai_epi32(exponent, 1), rest = _mm256_sub_epi32(exponent, half);
    const auto power = [](__m256i e) {
        return Vec{_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23))};
    };
    return a * power(half) * power(rest);
}

template <int Distance>
inline Vec fold(Vec a, Vec b) {
    if constexpr (Distance == 4)
        return {_mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20), _mm256_permute2f128_ps(a.v, b.v, 0x31))};
    else if constexpr (Distance == 2)
        return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x44), _mm256_shuffle_ps(a.v, b.v, 0xEE))};
    else
        return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x88), _mm256_shuffle_ps(a.v, b.v, 0xDD))};
}

}  // namespace VISION_SSM_ISA
