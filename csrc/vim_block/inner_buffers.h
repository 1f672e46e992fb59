// What the way back through a Vim block between in_proj and out_proj reads, writes and works in.
#pragma once

#include "common/arena.h"
#include "common/gemm.h"
#include "include/vim_block.h"
#include "scan/reverse.h"
#include "ssm/direction.h"

namespace VISION_SSM_ISA {

// The parameters of a direction as the way back reads them, besides those of the forward pass.
struct BackwardProjections {
    float* x_proj;   // [pairs of blocks][R + 2N][PAIR * W]
    float* dt_proj;  // [vectors of ranks][C][W]

    static int64_t pairs(const vssm_ssm& s) { return ceil_div(s.channels, PAIR * W); }
    static int64_t padded(const vssm_ssm& s) { return pairs(s) * PAIR * W; }
    static int64_t rank_vectors(const vssm_ssm& s) { return ceil_div(s.rank, W); }
    static int64_t size(const vssm_ssm& s) {
        return padded(s) * (s.rank + 2 * s.states + rank_vectors(s) * W) + 2 * Arena::LINE;
    }
    BackwardProjections(const vssm_ssm& s, Arena& arena)
        : x_proj(arena.take(padded(s) * (s.rank + 2 * s.states))),
          dt_proj(arena.take(padded(s) * rank_vectors(s) * W)) {}

    void pack(const vssm_ssm& s, int64_t k, int64_t pair) {
        const int64_t set = s.projections == 1 ? 0 : k, outputs = s.rank + 2 * s.states, width = PAIR * W;
        const int64_t first = pair * width, channels = std::min(s.channels - first, width);
        const float* x = static_cast<const float*>(s.x_proj) + set * outputs * s.channels + first;
        float* to = x_proj + pair * outputs * width;
        std::fill_n(to, outputs * width, 0.f);
        for (int64_t o = 0; o < outputs; ++o) std::copy_n(x + o * s.channels, channels, to + o * width);
        const float* dt = static_cast<const float*>(s.dt_proj) + (set * s.channels + first) * s.rank;
        for (int64_t v = 0; v < rank_vectors(s); ++v) {
            float* rows = dt_proj + (v * padded(s) + first) * W;
            std::fill_n(rows, width * W, 0.f);
            for (int64_t c = 0; c < channels; ++c)
                std::copy_n(dt + c * s.rank + v * W, std::min<int64_t>(s.rank - v * W, W), rows + c * W);
        }
    }
};

// Where one group's gradients of one direction's parameters lie: rows of C floats, added to.
struct ParameterGradients {
    float *a_log, *skip, *dt_bias, *conv, *conv_bias, *x_proj, *dt_proj;

    static int64_t rows(const vssm_ssm& s) { return 3 * s.states + 2 * s.rank + s.taps + 3; }
    ParameterGradients(const vssm_vim_block_gradients& g, int64_t group, int64_t k) {
        const vssm_ssm& s = g.branch.ssm;
        const int64_t C = s.channels;
        a_log = g.parameters + (group * s.directions + k) * rows(s) * C;
        skip = a_log + s.states * C;
        dt_bias = skip + C;
        conv = dt_bias + C;
        conv_bias = conv + s.taps * C;
        x_proj = conv_bias + C;
        dt_proj = x_proj + (s.rank + 2 * s.states) * C;
    }
};

// What one thread works in: its channels of a few tiles.
struct InnerScratch {
    const int64_t first_block, end_block;
    int64_t stride, width;
    float *u, *slope, *du;   // [tiles][T][stride]: the convolution's result, SiLU's slope there, gradient of u
    float *projected, *sum;  // [tiles][T][width], [T][width]
    float *carried, *da;     // [blocks][N][W]
    float* lanes;            // [groups of states][T][W]
    ReverseTile* tile;

    static int64_t width_of(const vssm_ssm& s) { return TileScratch::width_of(s) + round_up(s.rank, W); }
    static int64_t lanes_size(const vssm_ssm& s) { return (s.states / REVERSE_GROUP + 2) * T * W; }
    static int64_t size(const vssm_ssm& s, int64_t tiles) {
        const int64_t padded = BackwardProjections::padded(s);
        return tiles * T * (3 * row_stride(padded) + width_of(s)) + T * width_of(s) + 2 * padded * s.states +
               lanes_size(s) + static_cast<int64_t>(sizeof(ReverseTile) / sizeof(float)) + 9 * Arena::LINE;
    }
    InnerScratch(const vssm_ssm& s, int64_t tiles, int64_t first_block, int64_t end_block, Arena& arena)
        : first_block(first_block), end_block(end_block) {
        const int64_t blocks = round_up(end_block - first_block, PAIR);
        stride = row_stride(blocks * W);
        width = width_of(s);
        u = arena.take(tiles * T * stride);
        slope = arena.take(tiles * T * stride);
        du = arena.take(tiles * T * stride);
        projected = arena.take(tiles * T * width);
        sum = arena.take(T * width);
        carried = arena.take(blocks * s.states * W);
        da = arena.take(blocks * s.states * W);
        lanes = arena.take(lanes_size(s));
        tile = reinterpret_cast<ReverseTile*>(arena.take(sizeof(ReverseTile) / sizeof(float)));
        // Groups of tokens reach into rows that no tile has filled.
        std::fill_n(projected, tiles * T * width, 0.f);
        std::fill_n(du, tiles * T * stride, 0.f);
    }
};

// out [O][P * W] += sum over count steps of scalars [count][O] times vectors [count][P * W].
template <int O, int P>
void add_outer(const float* scalars, int64_t scalar_stride, const float* vectors, int64_t block_stride, int64_t stride,
               int count, float* out, int64_t out_stride, const int* lanes) {
    Vec sum[O * P];
    unroll<O>([&](auto o) {
        unroll<P>([&](auto p) { sum[o * P + p] = load(out + o * out_stride + p * W, lanes[p]); });
    });
    for (int t = 0; t < count; ++t) {
        Vec v[P];
        unroll<P>([&](auto p) { v[p] = Vec::load(vectors + t * stride + p * block_stride); });
        unroll<O>([&](auto o) {
            const Vec x = Vec::set(scalars[t * scalar_stride + o]);
            unroll<P>([&](auto p) { sum[o * P + p] = fma(x, v[p], sum[o * P + p]); });
        });
    }
    unroll<O>([&](auto o) {
        unroll<P>([&](auto p) { store(sum[o * P + p], out + o * out_stride + p * W, lanes[p]); });
    });
}

}  // namespace VISION_SSM_ISA
