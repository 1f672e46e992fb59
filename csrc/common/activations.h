// Sigmoid, softplus and GELU of vectors.
#pragma once

#include "common/simd.h"

namespace VISION_SSM_ISA {

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

inline Vec exp_minus_abs(Vec x) { return Exp2()(absolute(x), Vec::set(-LOG2E)); }

inline Vec softplus(Vec x) { return softplus(x, exp_minus_abs(x)); }

// The slope of softplus at x, 1 / (1 + exp(-x)), from w = exp(-|x|).
inline Vec softplus_slope(Vec x, Vec w) {
    return where_negative(x, w, Vec::set(1.f)) * reciprocal(Vec::set(1.f) + w);
}

// x times the normal distribution's share below it. Above |x| that share is exp(-x^2 / 2) p(1 / (1 + 0.3 |x|)), with p
// fitted for the least relative error up to |x| = 6, 5e-8 in exact arithmetic.
inline Vec gelu(Vec x) {
    // The bound keeps the exponent finite; the share is below 1e-38 there.
    const Vec a = Vec::set(0.f) - maximum(Vec::set(-14.f), Vec::set(0.f) - absolute(x));
    const Vec t = reciprocal(fma(Vec::set(0.3f), a, Vec::set(1.f)));
    Vec p = Vec::set(3.730446845e-02f);
    p = fma(p, t, Vec::set(-1.639339477e-01f));
    p = fma(p, t, Vec::set(2.178329378e-01f));
    p = fma(p, t, Vec::set(-6.411679089e-02f));
    p = fma(p, t, Vec::set(1.339906156e-01f));
    p = fma(p, t, Vec::set(9.830595553e-02f));
    p = fma(p, t, Vec::set(1.210028753e-01f));
    p = fma(p, t, Vec::set(1.196139082e-01f));
    const Vec above = Exp2()(a * a, Vec::set(-0.5f * LOG2E)) * (p * t);
    return maximum(x, Vec::set(0.f)) - a * above;
}

}  // namespace VISION_SSM_ISA
