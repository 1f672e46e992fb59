// One vector type per instruction set: W float lanes, one channel in each. Included once per compilation of the
// kernels; VISION_SSM_ISA (portable, avx2, avx512, avx512bf16) names both the namespace and the type's implementation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace VISION_SSM_ISA {

using bfloat16 = uint16_t;

inline float widen(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline bfloat16 narrow(float x) {  // round to nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bfloat16>((bits >> 16) | 0x40);
    return static_cast<bfloat16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)

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
inline void turn_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
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

#elif defined(__AVX2__)

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

#else  // any other machine: loops that compilers vectorise

struct Vec {
    static constexpr int W = 8;
    float v[W];

    static Vec set(float x) { return each([x](int) { return x; }); }
    static Vec load(const float* p) { return each([p](int i) { return p[i]; }); }
    static Vec load(const float* p, int n) { return each([p, n](int i) { return i < n ? p[i] : 0.f; }); }
    static Vec load(const bfloat16* p) { return each([p](int i) { return widen(p[i]); }); }
    static Vec load(const bfloat16* p, int n) { return each([p, n](int i) { return i < n ? widen(p[i]) : 0.f; }); }
    void store(float* p) const { store(p, W); }
    void store(float* p, int n) const {
        for (int i = 0; i < n; ++i) p[i] = v[i];
    }
    void store(bfloat16* p) const { store(p, W); }
    void store(bfloat16* p, int n) const {
        for (int i = 0; i < n; ++i) p[i] = narrow(v[i]);
    }

    template <class F>
    static Vec each(F f) {
        Vec r;
        for (int i = 0; i < W; ++i) r.v[i] = f(i);
        return r;
    }
};

inline Vec operator+(Vec a, Vec b) { return Vec::each([&](int i) { return a.v[i] + b.v[i]; }); }
inline Vec operator-(Vec a, Vec b) { return Vec::each([&](int i) { return a.v[i] - b.v[i]; }); }
inline Vec operator*(Vec a, Vec b) { return Vec::each([&](int i) { return a.v[i] * b.v[i]; }); }
inline Vec operator/(Vec a, Vec b) { return Vec::each([&](int i) { return a.v[i] / b.v[i]; }); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec maximum(Vec a, Vec b) { return Vec::each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Vec where_negative(Vec x, Vec a, Vec b) {
    return Vec::each([&](int i) { return std::signbit(x.v[i]) ? a.v[i] : b.v[i]; });
}
inline Vec absolute(Vec a) { return Vec::each([&](int i) { return std::fabs(a.v[i]); }); }
inline Vec nearest(Vec a) { return Vec::each([&](int i) { return std::nearbyint(a.v[i]); }); }
inline Vec times_power_of_two(Vec a, Vec whole) {
    return Vec::each([&](int i) {
        const float e = whole.v[i] < -252.f ? -252.f : whole.v[i] > 254.f ? 254.f : whole.v[i];
        const int32_t exponent = static_cast<int32_t>(e == e ? e : 0.f), half = exponent >> 1;
        const uint32_t bits[2] = {static_cast<uint32_t>(half + 127) << 23,
                                  static_cast<uint32_t>(exponent - half + 127) << 23};
        float power[2];
        std::memcpy(power, bits, 8);
        return a.v[i] * power[0] * power[1];
    });
}

template <int Distance>
inline Vec fold(Vec a, Vec b) {
    // The lanes come in blocks of 2 * Distance; each block's two halves are added. a fills the lower half, b the rest.
    Vec r;
    for (int i = 0, to = 0; i < Vec::W; i += 2 * Distance)
        for (int j = 0; j < Distance; ++j, ++to) {
            r.v[to] = a.v[i + j] + a.v[i + j + Distance];
            r.v[to + Vec::W / 2] = b.v[i + j] + b.v[i + j + Distance];
        }
    return r;
}

#endif

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

#if defined(__AVX512F__)
inline Vec exp2(Vec t) { return Exp2()(t, Vec::set(1.f)); }
#else
// 2^t. Degree-5 minimax polynomial on [-1/2, 1/2]: relative error 1e-7 besides the rounding of t.
inline Vec exp2(Vec t) {
    const Vec whole = nearest(t), f = t - whole;
    Vec p = Vec::set(1.326472725e-3f);
    p = fma(p, f, Vec::set(9.671512786e-3f));
    p = fma(p, f, Vec::set(5.550733744e-2f));
    p = fma(p, f, Vec::set(2.402224208e-1f));
    p = fma(p, f, Vec::set(6.931469776e-1f));
    p = fma(p, f, Vec::set(1.f));
    return times_power_of_two(p, whole);
}

inline Vec reciprocal(Vec a) { return Vec::set(1.f) / a; }

// A square of W x W floats in memory to columns elsewhere.
inline void turn_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    for (int column = 0; column < Vec::W; ++column)
        for (int row = 0; row < Vec::W; ++row) to[column * to_stride + row] = from[row * from_stride + column];
}

struct Exp2 {
    Vec operator()(Vec a, Vec b) const { return exp2(a * b); }
};
#endif

// Products of pairs of bfloat16, where the processor takes one as fast as a product of floats.
#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_PAIRS = true;
// c + the sum of a lane's two products, for lanes that hold a pair each.
inline Vec add_products(Vec a, Vec b, Vec c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// Lanes of a and b as bfloat16, in pairs.
inline Vec paired(Vec a, Vec b) {
    const auto narrowed = [](Vec x) { return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v))); };
    return {_mm512_castsi512_ps(_mm512_or_si512(narrowed(a), _mm512_slli_epi32(narrowed(b), 16)))};
}
#else
constexpr bool MULTIPLIES_PAIRS = false;
Vec add_products(Vec a, Vec b, Vec c);
Vec paired(Vec a, Vec b);
#endif

constexpr float LOG2E = 1.44269504088896f, LN2 = 0.693147180559945f;

// The bound keeps the reciprocal's argument finite; sigmoid is below 1e-37 there.
inline Vec sigmoid(Vec x) {
    return reciprocal(Vec::set(1.f) + Exp2()(maximum(Vec::set(-86.f), x), Vec::set(-LOG2E)));
}

// log(1 + exp(x)) = max(x, 0) + log1p(w), w = exp(-|x|) in (0, 1]. log1p(w) = w p(w) with p fitted for the least
// relative error, 5e-9, so that small steps keep their digits.
inline Vec softplus(Vec x, Vec w) {
    Vec p = Vec::set(-3.243904561e-3f);
    p = fma(p, w, Vec::set(1.985091895e-2f));
    p = fma(p, w, Vec::set(-5.695851147e-2f));
    p = fma(p, w, Vec::set(1.060355157e-1f));
    p = fma(p, w, Vec::set(-1.530553102e-1f));
    p = fma(p, w, Vec::set(1.967591792e-1f));
    p = fma(p, w, Vec::set(-2.495412976e-1f));
    p = fma(p, w, Vec::set(3.332996070e-1f));
    p = fma(p, w, Vec::set(-4.999990165e-1f));
    p = fma(p, w, Vec::set(1.f));
    return fma(p, w, maximum(x, Vec::set(0.f)));
}

inline Vec fading(Vec x) { return Exp2()(absolute(x), Vec::set(-LOG2E)); }  // exp(-|x|)

inline Vec softplus(Vec x) { return softplus(x, fading(x)); }

// The slope of softplus at x, 1 / (1 + exp(-x)).
inline Vec softplus_slope(Vec x, Vec w) {
    return where_negative(x, w, Vec::set(1.f)) * reciprocal(Vec::set(1.f) + w);
}

}  // namespace VISION_SSM_ISA
