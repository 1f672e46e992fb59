// Sixteen lanes of AVX-512 (F, BW, DQ, VL).
#pragma once

#include "common/simd/bfloat16.h"

#include <immintrin.h>

namespace VISION_SSM_ISA {

struct Vec {
    static constexpr int W = 16;
    __m512 v;

    static Vec set(float x) { return {_mm512_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
    static Vec load(const bfloat16* p) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Vec load(const bfloat16* p, int n) { return widened(_mm256_maskz_loadu_epi16(mask(n), p)); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
    void store(bfloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed()); }
    void store(bfloat16* p, int n) const { _mm256_mask_storeu_epi16(p, mask(n), narrowed()); }

  private:
    static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static Vec widened(__m256i x) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
    }
#if defined(__AVX512BF16__)
    __m256i narrowed() const { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
#else
    __m256i narrowed() const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        high = _mm512_mask_or_epi32(high, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_srli_epi32(bits, 16),
                                    _mm512_set1_epi32(0x40));
        return _mm512_cvtepi32_epi16(high);
    }
#endif
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec negative_fma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
inline Vec maximum(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec where_negative(Vec x, Vec a, Vec b) {  // a where x has its sign bit set, else b
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), b.v, a.v)};
}
inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec nearest(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }
inline Vec times_power_of_two(Vec a, Vec whole) { return {_mm512_scalef_ps(a.v, whole.v)}; }

alignas(64) constexpr float POWERS[32] = {  // 2^(k/32)
    1.f, 1.0218972f, 1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f, 1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f, 1.87416768f, 1.91520655f, 1.95714414f,
};

// 2^t for many t with few multiplications: 2^(k/32) from two registers, a parabola for the rest, |rest| <= 1/64.
// Relative error 1e-7 besides the rounding of t.
class Exp2 {
  public:
    Exp2() : low_(_mm512_load_ps(POWERS)), high_(_mm512_load_ps(POWERS + 16)) {}
    // 2^(a b), the product unrounded.
    Vec operator()(Vec a, Vec b) const {
        // Adding 1.5 * 2^23 / 32 leaves it rounded to 1/32 in the low bits, the five lowest of which are the index.
        const Vec magic = Vec::set(393216.f), shifted = fma(a, b, magic), coarse = shifted - magic;
        const Vec f = {_mm512_fmsub_ps(a.v, b.v, coarse.v)};
        const Vec power = {_mm512_permutex2var_ps(low_, _mm512_castps_si512(shifted.v), high_)};
        const Vec slope = fma(Vec::set(0.240226507f), f, Vec::set(0.693147181f)) * f;
        return times_power_of_two(fma(slope, power, power), coarse);
    }

  private:
    __m512 low_, high_;
};

// 1 / a for a in [1, 2^126]: an estimate of 14 bits and one Newton step, half the time of a division.
inline Vec reciprocal(Vec a) {
    const Vec estimate = {_mm512_rcp14_ps(a.v)};
    return estimate * negative_fma(a, estimate, Vec::set(2.f));
}

// Fold a into the lower half of the result and b into the upper half, at distances 8, 4, 2 and 1 lanes.
template <int Distance>
inline Vec fold(Vec a, Vec b) {
    if constexpr (Distance == 8)
        return {_mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xEE))};
    else if constexpr (Distance == 4)
        return {_mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88), _mm512_shuffle_f32x4(a.v, b.v, 0xDD))};
    else if constexpr (Distance == 2)
        return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x44), _mm512_shuffle_ps(a.v, b.v, 0xEE))};
    else
        return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xDD))};
}

// A square of W x W floats in memory to columns elsewhere. Rows i and i + 8 are loaded side by side, which spares a
// quarter of the shuffles that whole rows would take: there is one unit for those.
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    const auto low = [](__m512 a, __m512 b) { return _mm512_unpacklo_ps(a, b); };
    const auto high = [](__m512 a, __m512 b) { return _mm512_unpackhi_ps(a, b); };
    const auto low_pairs = [](__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto high_pairs = [](__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const __m512i firsts = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    const __m512i lasts = _mm512_add_epi32(firsts, _mm512_set1_epi32(4));
    for (int column = 0; column < 16; column += 8) {
        const auto rows = [&](int i) {
            const float* p = from + i * from_stride + column;
            const __m512 upper_half = _mm512_castps256_ps512(_mm256_loadu_ps(p));
            return _mm512_insertf32x8(upper_half, _mm256_loadu_ps(p + 8 * from_stride), 1);
        };
        const __m512 a0 = rows(0), a1 = rows(1), a2 = rows(2), a3 = rows(3);
        const __m512 a4 = rows(4), a5 = rows(5), a6 = rows(6), a7 = rows(7);
        // Columns j and j + 4 of rows 0 to 3 and 8 to 11, then of the others.
        const __m512 upper[4] = {low_pairs(low(a0, a1), low(a2, a3)), high_pairs(low(a0, a1), low(a2, a3)),
                                 low_pairs(high(a0, a1), high(a2, a3)), high_pairs(high(a0, a1), high(a2, a3))};
        const __m512 lower[4] = {low_pairs(low(a4, a5), low(a6, a7)), high_pairs(low(a4, a5), low(a6, a7)),
                                 low_pairs(high(a4, a5), high(a6, a7)), high_pairs(high(a4, a5), high(a6, a7))};
        for (int j = 0; j < 4; ++j) {
            float* out = to + (column + j) * to_stride;
            _mm512_storeu_ps(out, _mm512_permutex2var_ps(upper[j], firsts, lower[j]));
            _mm512_storeu_ps(out + 4 * to_stride, _mm512_permutex2var_ps(upper[j], lasts, lower[j]));
        }
    }
}

inline Vec exp2(Vec t) { return Exp2()(t, Vec::set(1.f)); }

}  // namespace VISION_SSM_ISA
