// Divisions that round up.
#pragma once

#include <cstdint>

namespace VISION_SSM_ISA {

// How many pieces of `each` cover `count`.
inline int64_t ceil_div(int64_t count, int64_t each) { return (count + each - 1) / each; }

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace VISION_SSM_ISA
