// What the scan's forward and backward passes share: how channels are cut into tasks, and what a task reads of them.
#pragma once

#include "common/activations.h"
#include "common/rounding.h"
#include "common/rows.h"
#include "include/scan.h"

#include <algorithm>

namespace VISION_SSM_ISA {

// Whether direction k adds to a result that the directions share, rather than being the first to write it.
inline bool adds_to_shared(const vssm_scan& s, int64_t k) {
    return s.cover == VSSM_COVER_SOME || (s.cover == VSSM_COVER_EACH && k > 0);
}

// Rows of B or C as float32 [count][states]: they are read once per block of channels.
template <class E>
inline void copy_states(const Rows<E>& rows, const int64_t* tokens, int count, int64_t states, float* out) {
    for (int t = 0; t < count; ++t) {
        const E* row = rows.row(tokens[t]);
        for (int64_t n = 0; n < states; ++n) {
            if constexpr (sizeof(E) == 2)
                out[t * states + n] = widen(row[n]);
            else
                out[t * states + n] = row[n];
        }
    }
}

// The channels of one task: an image's C channels are cut into blocks of W and the blocks into groups, one per task.
struct ChannelRange {
    int64_t first_block, blocks;

    ChannelRange(const vssm_scan& s, int64_t group) {
        const int64_t all = ceil_div(s.channels, W);
        first_block = all * group / s.groups;
        blocks = all * (group + 1) / s.groups - first_block;
    }
    int64_t channel(int64_t block) const { return (first_block + block) * W; }
    static int lanes(const vssm_scan& s, int64_t channel) {
        return static_cast<int>(s.channels - channel < W ? s.channels - channel : W);
    }
};

// A * log2(e) of direction k as [blocks][N][W], so that the decay of a step is one power of two of one product.
inline void copy_rates(const vssm_scan& s, int64_t k, const ChannelRange& range, float* rate) {
    for (int64_t block = 0; block < range.blocks; ++block) {
        const int64_t channel = range.channel(block);
        const float* a = s.a + (k * s.channels + channel) * s.states;
        const int lanes = ChannelRange::lanes(s, channel);
        float* out = rate + block * s.states * W;
        if (lanes < W) std::fill_n(out, s.states * W, 0.f);
        for (int lane = 0; lane < lanes; ++lane)
            for (int64_t n = 0; n < s.states; ++n) out[n * W + lane] = a[lane * s.states + n] * LOG2E;
    }
}

}  // namespace VISION_SSM_ISA
