// What AVX-512 has instructions for and other instruction sets compute. Included behind their vector type.
#pragma once

#include <cstdint>

namespace VISION_SSM_ISA {

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
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    for (int column = 0; column < Vec::W; ++column)
        for (int row = 0; row < Vec::W; ++row) to[column * to_stride + row] = from[row * from_stride + column];
}

struct Exp2 {
    Vec operator()(Vec a, Vec b) const { return exp2(a * b); }
};

}  // namespace VISION_SSM_ISA
