// The rows of one head's tokens in a tile, as float32 and padded with zeros to whole vectors.
#pragma once

#include "common/activations.h"
#include "common/rounding.h"
#include "common/rows.h"
#include "common/walk.h"
#include "include/gla.h"

#include <algorithm>

namespace VISION_SSM_ISA {

// Whether direction k adds to a result that the directions share, rather than being the first to write it.
inline bool adds_to_shared(const vssm_gla& g, int64_t k) {
    return g.cover == VSSM_COVER_SOME || (g.cover == VSSM_COVER_EACH && k > 0);
}

// Call f(i, lanes) for vectors of `width` channels, the last with what lanes are left.
template <class F>
inline void for_vectors(int64_t width, F&& f) {
    for (int64_t i = 0; i < width; i += W) f(i, static_cast<int>(std::min<int64_t>(width - i, W)));
}

// Rows of x at the tokens, times a factor: [count][stride].
template <class E>
inline void gather(const Rows<E>& x, const int64_t* tokens, int count, int64_t channel, int64_t width, float factor,
                   float* to, int64_t stride) {
    const Vec by = Vec::set(factor);
    for (int t = 0; t < count; ++t) {
        const E* row = x.row(tokens[t]) + channel;
        for_vectors(width, [&](int64_t i, int lanes) { (load(row + i, lanes) * by).store(to + t * stride + i); });
    }
}

// The gates of rows of log-gates. The bound keeps the power's exponent finite; the gate is below 1e-60 there.
inline void gather_gates(const Rows<float>& x, const int64_t* tokens, int count, int64_t channel, int64_t width,
                         float* to, int64_t stride) {
    const Exp2 exp2;
    const Vec least = Vec::set(-140.f);
    for (int t = 0; t < count; ++t) {
        const float* row = x.row(tokens[t]) + channel;
        for_vectors(width, [&](int64_t i, int lanes) {
            exp2(maximum(least, load(row + i, lanes)), Vec::set(LOG2E)).store(to + t * stride + i);
        });
    }
}

// Rows to the tokens of x, or added to what is there.
inline void scatter(const float* from, int64_t stride, const Rows<float>& x, const int64_t* tokens, int count,
                    int64_t channel, int64_t width, bool add) {
    for (int t = 0; t < count; ++t) {
        float* row = x.row(tokens[t]) + channel;
        for_vectors(width, [&](int64_t i, int lanes) {
            const Vec y = Vec::load(from + t * stride + i);
            store(add ? y + load(row + i, lanes) : y, row + i, lanes);
        });
    }
}

}  // namespace VISION_SSM_ISA
