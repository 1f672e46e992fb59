// A tile walked backwards: recomputed from the state that the forward pass saved before it, then from its last step to
// its first. Shared by the kernels of backward passes.
//
//   keep[t] = exp(delta[t] A)      past[t] = keep[t] h[t-1]      h[t] = past[t] + delta[t] B[t] u[t]
//   g[t] = C[t] dy[t] + keep[t+1] g[t+1]      q[t] = g[t] past[t]
//   dC[t] = sum_c dy h      dB[t] = sum_c g delta u      dA = sum_t q delta
//
// Two blocks of channels are taken side by side: dB and dC then need half as many sums over lanes.
#pragma once

#include "tile.h"

namespace VISION_SSM_ISA {

constexpr int PAIR = 2;           // blocks side by side
constexpr int REVERSE_GROUP = 4;  // states of both that are in registers together

struct Stretch {
    // [PAIR][T][W]
    alignas(64) float delta[PAIR * T * W];
    alignas(64) float drive[PAIR * T * W];  // delta * u
    alignas(64) float dy[PAIR * T * W];     // gradient of the readout
    alignas(64) float sum_gb[PAIR * T * W];
    alignas(64) float sum_qa[PAIR * T * W];  // in units of log2
    // [T][states][blocks][W]
    alignas(64) float keep[T * REVERSE_GROUP * PAIR * W];
    alignas(64) float past[T * REVERSE_GROUP * PAIR * W];
};

// Rows of B and C, and where the states of P blocks lie: [P][N][W] each.
struct States {
    const float *b, *c;  // of the group's first state, rows of `stride` floats
    int64_t stride;
    const float* rate;  // A * log2(e)
    float *carried, *da;
    int64_t block_stride;  // N * W
    float *lanes_b, *lanes_c;  // [T][W]: added to, M states with W / M lanes each
};

// Recompute M states of P blocks from those saved at `before`, [N][C] for channels that the two blocks have `lanes` of.
// With `readout` [PAIR][T][W], it is added to there.
template <int P, int M>
void recompute(Stretch& tile, int count, const States& states, const float* before, int64_t before_stride,
               const int* lanes, float* readout, Ahead* ahead) {
    const Exp2 exp2;
    Vec h[P * M];
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) { h[p * M + n] = load(before + n * before_stride + p * W, lanes[p]); });
    });
    for (int t = 0; t < count; ++t) {
        Vec delta[P], drive[P], dy[P], dc[M];
        unroll<P>([&](auto p) {
            delta[p] = Vec::load(tile.delta + (p * T + t) * W);
            drive[p] = Vec::load(tile.drive + (p * T + t) * W);
            dy[p] = Vec::load(tile.dy + (p * T + t) * W);
            if (ahead) ahead->fetch();
        });
        const float* b = states.b + t * states.stride;
        float *keep = tile.keep + t * M * P * W, *past = tile.past + t * M * P * W;
        unroll<M>([&](auto n) {
            const Vec bn = Vec::set(b[n]);
            unroll<P>([&](auto p) {
                const Vec factor = exp2(delta[p], Vec::load(states.rate + p * states.block_stride + n * W));
                factor.store(keep + (n * P + p) * W);
                const Vec faded = factor * h[p * M + n];
                faded.store(past + (n * P + p) * W);
                h[p * M + n] = fma(drive[p], bn, faded);
                dc[n] = p == 0 ? h[p * M + n] * dy[p] : fma(h[p * M + n], dy[p], dc[n]);
            });
        });
        (Vec::load(states.lanes_c + t * W) + sum_lanes<M, W / M>(dc)).store(states.lanes_c + t * W);
        if (readout) {
            const float* c = states.c + t * states.stride;
            unroll<P>([&](auto p) {
                float* to = readout + (p * T + t) * W;
                Vec y = Vec::load(to);
                unroll<M>([&](auto n) { y = fma(h[p * M + n], Vec::set(c[n]), y); });
                y.store(to);
            });
        }
    }
}

// Walk the same states backwards.
template <int P, int M>
void reverse(Stretch& tile, int count, const States& states) {
    Vec carry[P * M], da[P * M];
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) {
            carry[p * M + n] = Vec::load(states.carried + p * states.block_stride + n * W);
            da[p * M + n] = Vec::load(states.da + p * states.block_stride + n * W);
        });
    });
    for (int t = count - 1; t >= 0; --t) {
        Vec delta[P], drive[P], dy[P], gb[P], qa[P], db[M];
        unroll<P>([&](auto p) {
            delta[p] = Vec::load(tile.delta + (p * T + t) * W);
            drive[p] = Vec::load(tile.drive + (p * T + t) * W);
            dy[p] = Vec::load(tile.dy + (p * T + t) * W);
            gb[p] = Vec::load(tile.sum_gb + (p * T + t) * W);
            qa[p] = Vec::load(tile.sum_qa + (p * T + t) * W);
        });
        const float *b = states.b + t * states.stride, *c = states.c + t * states.stride;
        const float *keep = tile.keep + t * M * P * W, *past = tile.past + t * M * P * W;
        unroll<M>([&](auto n) {
            const Vec bn = Vec::set(b[n]), cn = Vec::set(c[n]);
            unroll<P>([&](auto p) {
                const Vec g = fma(dy[p], cn, carry[p * M + n]);
                db[n] = p == 0 ? g * drive[p] : fma(g, drive[p], db[n]);
                gb[p] = fma(g, bn, gb[p]);
                const Vec q = g * Vec::load(past + (n * P + p) * W);
                carry[p * M + n] = g * Vec::load(keep + (n * P + p) * W);
                qa[p] = fma(q, Vec::load(states.rate + p * states.block_stride + n * W), qa[p]);
                da[p * M + n] = fma(q, delta[p], da[p * M + n]);
            });
        });
        unroll<P>([&](auto p) {
            gb[p].store(tile.sum_gb + (p * T + t) * W);
            qa[p].store(tile.sum_qa + (p * T + t) * W);
        });
        (Vec::load(states.lanes_b + t * W) + sum_lanes<M, W / M>(db)).store(states.lanes_b + t * W);
    }
    unroll<P>([&](auto p) {
        unroll<M>([&](auto n) {
            carry[p * M + n].store(states.carried + p * states.block_stride + n * W);
            da[p * M + n].store(states.da + p * states.block_stride + n * W);
        });
    });
}

// Add what the loops above left in `lanes`, [T][W], to M columns of rows of `stride` floats; the rows are zero or more
// up to a multiple of W / M steps.
template <int M>
void add_lanes(const float* lanes, int count, float* to, int64_t stride) {
    constexpr int EACH = W / M;  // steps at a time
    static const struct Lanes {
        int of[W];  // lane of state i at the d-th step: of[d * M + i]
        Lanes() {
            Vec steps[EACH];
            for (int d = 0; d < EACH; ++d) {
                Vec states[M];
                for (int i = 0; i < M; ++i) states[i] = Vec::set(static_cast<float>(d * M + i));
                steps[d] = sum_lanes<M, W / M>(states);
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
            for (int i = 0; i < M; ++i) to[(t + d) * stride + i] += sums[lane.of[d * M + i]];
    }
}

}  // namespace VISION_SSM_ISA
