// One bfloat16 to a float and back.
#pragma once

#include <cstdint>
#include <cstring>

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

}  // namespace VISION_SSM_ISA
