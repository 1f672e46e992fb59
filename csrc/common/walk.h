// The tokens that a direction visits, cut into tiles of VSSM_CHUNK steps.
#pragma once

#include "include/types.h"

#include <algorithm>
#include <cstdint>

namespace VISION_SSM_ISA {

constexpr int T = VSSM_CHUNK;

// The tiles of a walk: at most T steps each, ending where the state starts anew. Where the walk is the rest of one
// without resets, `before` steps of which were done, they end where that one's tiles do.
struct Tiles {
    int64_t length, run, phase, per_run;

    explicit Tiles(const vssm_walk& walk, int64_t before = 0)
        : length(walk.length),
          run(walk.reset ? walk.inner_count : std::max<int64_t>(walk.length, 1)),
          phase(before % T),
          per_run((run + phase + T - 1) / T) {}
    int64_t count() const { return length / run * per_run + (length % run + T - 1) / T; }
    int64_t first(int64_t tile) const { return tile / per_run * run + begin(tile % per_run); }
    int steps(int64_t tile) const {
        const int64_t in_run = tile % per_run, end = std::min(begin(in_run + 1), run);
        return static_cast<int>(std::min(end - begin(in_run), length - first(tile)));
    }
    bool starts_anew(int64_t tile) const { return tile % per_run == 0; }

  private:
    int64_t begin(int64_t in_run) const { return std::max<int64_t>(in_run * T - phase, 0); }
};

// The tokens that a tile reads and those that it writes its outputs at.
struct TileTokens {
    int64_t reads[T], writes[T];

    void set(const vssm_walk& walk, int64_t first, int count) {
        follow(walk, walk.start, walk.inner_stride, walk.outer_stride, first, count, reads);
        follow(walk, walk.write_start, walk.write_inner_stride, walk.write_outer_stride, first, count, writes);
    }

  private:
    static void follow(const vssm_walk& walk, int64_t start, int64_t inner_stride, int64_t outer_stride, int64_t first,
                       int count, int64_t* tokens) {
        int64_t inner = first % walk.inner_count;
        int64_t token = start + first / walk.inner_count * outer_stride + inner * inner_stride;
        for (int t = 0; t < count; ++t) {
            tokens[t] = token;
            token += inner_stride;
            if (++inner == walk.inner_count) {
                inner = 0;
                token += outer_stride - walk.inner_count * inner_stride;
            }
        }
    }
};

}  // namespace VISION_SSM_ISA
