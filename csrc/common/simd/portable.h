// Eight lanes on any machine: loops that compilers vectorise.
#pragma once

#include "common/simd/bfloat16.h"

#include <cmath>

namespace VISION_SSM_ISA {

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

}  // namespace VISION_SSM_ISA
