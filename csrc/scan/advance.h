// Advancing the states of a block of channels by a slice of a tile, and the epilogue: gate, sum of the directions,
// store. Shared by the kernels that scan forwards.
//
//   h[t] = exp(delta[t] A) h[t-1] + B[t] drive[t]     y[t] = C[t] . h[t] + D u[t]     drive[t] = delta[t] u[t]
#pragma once

#include "common/activations.h"
#include "common/prefetch.h"
#include "common/rows.h"
#include "common/unroll.h"

namespace VISION_SSM_ISA {

// Steps between two saved states are done in slices, small enough that a slice and the lines fetched ahead for the next
// one stay in the first-level cache together.
constexpr int S = 32;
static_assert(T % S == 0, "a saved state stands at the start of a slice");

struct Slice {
    alignas(64) float delta[S * W];
    alignas(64) float drive[S * W];  // delta * u
    alignas(64) float y[S * W];      // starts as D * u
};

#if defined(__AVX512F__)
constexpr int STATE_GROUP = 16;
#else
constexpr int STATE_GROUP = 8;
#endif

// Advance G states by `count` steps: rate and h [G][W], B and C in rows of `stride` floats.
template <int G>
void advance(Slice& slice, int count, const float* rate, const float* b, const float* c, int64_t stride, float* h,
             TilePrefetch* ahead, const LinePrefetch& lines) {
    const Exp2 exp2;
    Vec state[G];
    unroll<G>([&](auto n) { state[n] = Vec::load(h + n * W); });
    for (int t = 0; t < count; ++t) {
        const Vec delta = Vec::load(slice.delta + t * W), drive = Vec::load(slice.drive + t * W);
        const float *bt = b + t * stride, *ct = c + t * stride;
        if (ahead) {
            ahead->fetch();
            lines.fetch(t);
        }
        Vec y[2] = {Vec::load(slice.y + t * W), Vec::set(0.f)};
        unroll<G>([&](auto n) {
            const Vec keep = exp2(delta, Vec::load(rate + n * W));
            state[n] = fma(keep, state[n], drive * Vec::set(bt[n]));
            y[n & 1] = fma(state[n], Vec::set(ct[n]), y[n & 1]);
        });
        (y[0] + y[1]).store(slice.y + t * W);
    }
    unroll<G>([&](auto n) { state[n].store(h + n * W); });
}

// What becomes of a block's result: it goes to the running sum of the directions or, gated, to the output.
template <class E>
struct Epilogue {
    Rows<E> y, z;
    Rows<float> sum;
    bool to_sum, add_sum, gate;
    float* ungated = nullptr;  // where the result is kept as it is before the gate, too: [tokens][ungated_stride]
    int64_t ungated_stride = 0;

    bool reaches_sum() const { return to_sum || add_sum; }
    bool reaches_output() const {  // besides
        return !to_sum && !(add_sum && static_cast<const void*>(y.base) == static_cast<const void*>(sum.base));
    }
};

// Results of steps go to the rows `tokens`, gated by the rows `gates` of z.
template <class E>
void apply_epilogue(const Slice& slice, const int64_t* tokens, const int64_t* gates, int count, int64_t channel,
                    int lanes, const Epilogue<E>& epilogue) {
    const auto over_steps = [&](auto&& result) {  // with whole vectors apart, so that they need no mask
        if (lanes == W)
            for (int t = 0; t < count; ++t) result(t, Vec::load(slice.y + t * W), W);
        else
            for (int t = 0; t < count; ++t) result(t, Vec::load(slice.y + t * W), lanes);
    };
    const auto sum_at = [&](int t) { return epilogue.sum.row(tokens[t]) + channel; };
    const auto gated = [&](int t, Vec v, int n) {
        if (epilogue.ungated) store(v, epilogue.ungated + tokens[t] * epilogue.ungated_stride + channel, n);
        if (epilogue.gate) {
            const Vec z = load(epilogue.z.row(gates[t]) + channel, n);
            v = v * z * sigmoid(z);
        }
        store(v, epilogue.y.row(tokens[t]) + channel, n);
    };
    if (epilogue.to_sum && epilogue.add_sum)
        over_steps([&](int t, Vec v, int n) { store(v + load(sum_at(t), n), sum_at(t), n); });
    else if (epilogue.to_sum)
        over_steps([&](int t, Vec v, int n) { store(v, sum_at(t), n); });
    else if (epilogue.add_sum)
        over_steps([&](int t, Vec v, int n) { gated(t, v + load(sum_at(t), n), n); });
    else
        over_steps(gated);
}

}  // namespace VISION_SSM_ISA
