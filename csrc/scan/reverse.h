// A tile walked backwards: recomputed from the state that the forward pass saved before it, then from its last step to
// its first. Shared by the kernels of backward passes.
//
//   keep[t] = exp(delta[t] A)      h[t] = keep[t] h[t-1] + delta[t] B[t] u[t]
//   g[t] = C[t] dy[t] + keep[t+1] g[t+1]      q[t] = g[t] keep[t] h[t-1]
//   dC[t] = sum_c dy h      dB[t] = sum_c g delta u      dA = sum_t q delta
//
// Two blocks of channels are taken side by side: dB and dC then need half as many sums over lanes.
#pragma once

#include "common/prefetch.h"
#include "common/rows.h"
#include "common/unroll.h"

namespace VISION_SSM_ISA {

constexpr int PAIR = 2;           // blocks side by side
constexpr int REVERSE_GROUP = 2;  // states of both that are in registers together

struct ReverseTile {
    // [PAIR][T][W]
    alignas(64) float delta[PAIR * T * W];
    alignas(64) float drive[PAIR * T * W];  // delta * u
    alignas(64) float dy[PAIR * T * W];     // gradient of the readout
    alignas(64) float sum_gb[PAIR * T * W];
    alignas(64) float sum_qa[PAIR * T * W];  // in units of log2
    // [T][states][blocks][W]
    alignas(64) float keep[T * REVERSE_GROUP * PAIR * W];
    alignas(64) float h[(T + 1) * REVERSE_GROUP * PAIR * W];
};

// Rows of B and C, and where the states of P blocks lie: [P][N][W] each.
struct StateGroup {
    const float *b, *c;  // of the group's first state, rows of `stride` floats
    int64_t stride;
    const float* rate;  // A * log2(e)
    float *carried, *da;
    int64_t block_stride;  // N * W
    float* lanes;  // [T][W]: added to; dB and dC of M states, with W / 2M lanes each
};

// Recompute M states of P blocks from those saved at `before`, [N][C] for channels that the two blocks have `lanes` of.
// With `readout` [PAIR][T][W], what they add to y is added there.
template <int P, int M, bool READOUT>
void recompute(ReverseTile& tile, int count, const StateGroup& states, const float* before, int64_t before_stride,
               const int* lanes, float* readout, TilePrefetch* ahead) {
    const Exp2 exp2;
    Vec state[P * M];
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) {
            state[n * P + p] = load(before + n * before_stride + p * W, lanes[p]);
            state[n * P + p].store(tile.h + (n * P + p) * W);
        });
    });
    for (int t = 0; t < count; ++t) {
        Vec delta[P], drive[P], y[P];
        unroll<P>([&](auto p) {
            delta[p] = Vec::load(tile.delta + (p * T + t) * W);
            drive[p] = Vec::load(tile.drive + (p * T + t) * W);
            if constexpr (READOUT) y[p] = Vec::load(readout + (p * T + t) * W);
            if (ahead) ahead->fetch();
        });
        const float *b = states.b + t * states.stride, *c = states.c + t * states.stride;
        float *keep = tile.keep + t * M * P * W, *h = tile.h + (t + 1) * M * P * W;
        unroll<M>([&](auto n) {
            const Vec bn = Vec::set(b[n]);
            unroll<P>([&](auto p) {
                const Vec factor = exp2(delta[p], Vec::load(states.rate + p * states.block_stride + n * W));
                factor.store(keep + (n * P + p) * W);
                state[n * P + p] = fma(factor, state[n * P + p], drive[p] * bn);
                state[n * P + p].store(h + (n * P + p) * W);
                if constexpr (READOUT) y[p] = fma(state[n * P + p], Vec::set(c[n]), y[p]);
            });
        });
        if constexpr (READOUT) unroll<P>([&](auto p) { y[p].store(readout + (p * T + t) * W); });
    }
}

// Walk the same states backwards.
template <int P, int M>
void reverse(ReverseTile& tile, int count, const StateGroup& states) {
    Vec carry[P * M], da[P * M];
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) {
            carry[n * P + p] = Vec::load(states.carried + p * states.block_stride + n * W);
            da[n * P + p] = Vec::load(states.da + p * states.block_stride + n * W);
        });
    });
    for (int t = count - 1; t >= 0; --t) {
        Vec delta[P], drive[P], dy[P], gb[P], qa[P], sums[2 * M];
        unroll<P>([&](auto p) {
            delta[p] = Vec::load(tile.delta + (p * T + t) * W);
            drive[p] = Vec::load(tile.drive + (p * T + t) * W);
            dy[p] = Vec::load(tile.dy + (p * T + t) * W);
            gb[p] = Vec::load(tile.sum_gb + (p * T + t) * W);
            qa[p] = Vec::load(tile.sum_qa + (p * T + t) * W);
        });
        const float *b = states.b + t * states.stride, *c = states.c + t * states.stride;
        const float *keep = tile.keep + t * M * P * W, *before = tile.h + t * M * P * W, *h = before + M * P * W;
        unroll<M>([&](auto n) {
            const Vec bn = Vec::set(b[n]), cn = Vec::set(c[n]);
            unroll<P>([&](auto p) {
                const int64_t at = (n * P + p) * W;
                const Vec g = fma(dy[p], cn, carry[n * P + p]), state = Vec::load(h + at);
                sums[2 * n] = p == 0 ? g * drive[p] : fma(g, drive[p], sums[2 * n]);
                sums[2 * n + 1] = p == 0 ? state * dy[p] : fma(state, dy[p], sums[2 * n + 1]);
                gb[p] = fma(g, bn, gb[p]);
                carry[n * P + p] = g * Vec::load(keep + at);
                const Vec q = carry[n * P + p] * Vec::load(before + at);
                qa[p] = fma(q, Vec::load(states.rate + p * states.block_stride + n * W), qa[p]);
                da[n * P + p] = fma(q, delta[p], da[n * P + p]);
            });
        });
        unroll<P>([&](auto p) {
            gb[p].store(tile.sum_gb + (p * T + t) * W);
            qa[p].store(tile.sum_qa + (p * T + t) * W);
        });
        (Vec::load(states.lanes + t * W) + sum_lanes<2 * M, W / (2 * M)>(sums)).store(states.lanes + t * W);
    }
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) {
            carry[n * P + p].store(states.carried + p * states.block_stride + n * W);
            da[n * P + p].store(states.da + p * states.block_stride + n * W);
        });
    });
}

// Add what the loop above left in `lanes`, [T][W], to M columns of rows of dB and of dC, `stride` floats apart. Lanes
// are read up to a multiple of W / 2M steps.
template <int M>
void add_lanes(const float* lanes, int count, float* db, float* dc, int64_t stride) {
    constexpr int EACH = W / (2 * M);  // steps at a time
    static const struct Lanes {
        int of[W];  // lane of the i-th sum at the d-th step: of[d * 2M + i]
        Lanes() {
            Vec steps[EACH];
            for (int d = 0; d < EACH; ++d) {
                Vec sums[2 * M];
                for (int i = 0; i < 2 * M; ++i) sums[i] = Vec::set(static_cast<float>(d * 2 * M + i));
                steps[d] = sum_lanes<2 * M, W / (2 * M)>(sums);
            }
            float sums[W];
            sum_lanes<EACH, 1>(steps).store(sums);
            for (int lane = 0; lane < W; ++lane) of[static_cast<int>(sums[lane] / W + 0.5f)] = lane;
        }
    } lane;
    for (int t = 0; t < count; t += EACH) {
        Vec steps[EACH];
        for (int d = 0; d < EACH; ++d) steps[d] = Vec::load(lanes + (t + d) * W);
        float sums[W];
        sum_lanes<EACH, 1>(steps).store(sums);
        for (int d = 0; d < EACH && t + d < count; ++d)
            for (int i = 0; i < M; ++i) {
                db[(t + d) * stride + i] += sums[lane.of[d * 2 * M + 2 * i]];
                dc[(t + d) * stride + i] += sums[lane.of[d * 2 * M + 2 * i + 1]];
            }
    }
}

}  // namespace VISION_SSM_ISA
