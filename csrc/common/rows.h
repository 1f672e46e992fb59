// Rows of a tensor, and vectors of them with fewer than W lanes at their end.
#pragma once

#include "common/simd.h"
#include "include/types.h"

namespace VISION_SSM_ISA {

// The rows of one direction of one image: row(token) is where that token's channels (or states) begin.
template <class E>
struct Rows {
    E* base;
    int64_t stride;

    Rows(const vssm_tensor& x, int64_t image, int64_t direction)
        : base(static_cast<E*>(x.data) + image * x.batch_stride + direction * x.direction_stride),
          stride(x.token_stride) {}
    E* row(int64_t token) const { return base + token * stride; }
};

template <class E>
inline Vec load(const E* p, int lanes) {
    return lanes == W ? Vec::load(p) : Vec::load(p, lanes);
}

template <class E>
inline void store(Vec x, E* p, int lanes) {
    if (lanes == W)
        x.store(p);
    else
        x.store(p, lanes);
}

}  // namespace VISION_SSM_ISA
