// The parameters of one direction of a selective SSM, packed, and the scratch memory of a thread that walks it.
#pragma once

#include "common/arena.h"
#include "common/gemm.h"
#include "include/ssm.h"

#include <vector>

namespace VISION_SSM_ISA {

// The parameters of one direction, packed so that every loop reads them in order; lanes beyond C hold zeros.
struct PackedParameters {
    PackedMatrix x_proj;      // R + 2N outputs
    float *conv, *conv_bias;  // [taps][blocks * W], [blocks * W]
    float* dt_proj;           // [blocks][R][W]
    float *dt_bias, *skip;    // [blocks * W]
    float* rate;              // [blocks][N][W]: A * log2(e)

    static int64_t size(const vssm_ssm& s) {
        return round_up(s.channels, W) * (s.taps + 3 + s.rank + s.states) +
               PackedMatrix::size(s.rank + 2 * s.states, s.channels) + 7 * Arena::LINE;
    }
    PackedParameters(const vssm_ssm& s, Arena& arena) {
        const int64_t channels = round_up(s.channels, W), outputs = s.rank + 2 * s.states;
        conv = arena.take(s.taps * channels);
        conv_bias = arena.take(channels);
        x_proj = {s.channels, outputs, arena.take(PackedMatrix::size(outputs, s.channels)),
                  PackedMatrix::takes_pairs(s.product_dtype)};
        dt_proj = arena.take(s.rank * channels);
        dt_bias = arena.take(channels);
        skip = arena.take(channels);
        rate = arena.take(s.states * channels);
    }

    // Packing is cut into this many independent parts.
    int64_t parts(const vssm_ssm& s) const { return ceil_div(s.channels, W) + x_proj.panels(); }

    template <class P>
    void pack(const vssm_ssm& s, int64_t k, int64_t part) {
        const int64_t R = s.rank, N = s.states, C = s.channels, blocks = ceil_div(C, W);
        const int64_t conv_set = s.convolutions == 1 ? 0 : k, set = s.projections == 1 ? 0 : k;
        const auto from = [](const void* data, int64_t at) { return static_cast<const P*>(data) + at; };
        if (part >= blocks) return x_proj.pack(from(s.x_proj, set * (R + 2 * N) * C), part - blocks);
        const int64_t first = part * W, lanes = std::min<int64_t>(W, C - first);
        const int64_t channel = set * C + first;  // of the parameters that directions may share
        transpose(from(s.dt_proj, channel * R), R, lanes, R, dt_proj + part * R * W, W);
        transpose(from(s.a_log, (k * C + first) * N), N, lanes, N, rate + part * N * W, W);
        load(from(s.dt_bias, channel), static_cast<int>(lanes)).store(dt_bias + first);
        load(from(s.skip, channel), static_cast<int>(lanes)).store(skip + first);
        if (s.taps) {
            const int64_t at = conv_set * C + first;
            transpose(from(s.conv_weight, at * s.taps), s.taps, lanes, s.taps, conv + first, round_up(C, W));
            load(from(s.conv_bias, at), static_cast<int>(lanes)).store(conv_bias + first);
        }
        for (int64_t n = 0; n < N; ++n) {  // A = -exp(A_log)
            float* row = rate + (part * N + n) * W;
            (exp2(Vec::load(row) * Vec::set(LOG2E)) * Vec::set(-LOG2E)).store(row);
        }
    }
};

// Pack the parameters of all directions. Called by every thread of a team; all is there when it returns.
inline void pack_parameters(const vssm_ssm& s, std::vector<PackedParameters>& parameters) {
    const int64_t parts = parameters.front().parts(s);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < static_cast<int64_t>(parameters.size()) * parts; ++i) {
        PackedParameters& p = parameters[static_cast<size_t>(i / parts)];
        if (s.parameter_dtype == VSSM_BFLOAT16)
            p.template pack<bfloat16>(s, i / parts, i % parts);
        else
            p.template pack<float>(s, i / parts, i % parts);
    }
}

// Rows of u and of projections for some tiles, and the states.
struct TileScratch {
    int64_t u_stride, width;
    float* u;          // [tiles][T][u_stride]
    float* projected;  // [tiles][T][width]
    float* h;          // [blocks][N][W]
    float* pairs;      // [tiles][T][pairs_stride]: u as a product takes it, where it takes pairs
    int64_t pairs_stride;

    static int64_t width_of(const vssm_ssm& s) { return round_up(s.rank + 2 * s.states, W); }
    static int64_t size(const vssm_ssm& s, int64_t tiles) {
        return tiles * T *
                   (row_stride(s.channels) + width_of(s) + PackedMatrix::pairs_stride(s.channels, s.product_dtype)) +
               s.states * round_up(s.channels, W) + 4 * Arena::LINE;
    }
    TileScratch(const vssm_ssm& s, int64_t tiles, Arena& arena)
        : u_stride(row_stride(s.channels)),
          width(width_of(s)),
          pairs_stride(PackedMatrix::pairs_stride(s.channels, s.product_dtype)) {
        u = arena.take(tiles * T * u_stride);
        projected = arena.take(tiles * T * width);
        h = arena.take(s.states * round_up(s.channels, W));
        pairs = arena.take(tiles * T * pairs_stride);
        std::fill_n(u, tiles * T * u_stride, 0.f);  // a group of tokens may reach into rows that no tile has filled
    }
};

// The step sizes of a block before softplus, dt_proj dt + dt_bias [count][W], from rows of dt: a few tokens side by
// side, so that the sums of different tokens overlap. Rows are read and written up to whole groups of MR tokens.
inline void expand_steps(const float* low_rank, int64_t stride, int64_t rank, int count, const float* weight, Vec bias,
                         float* out) {
    for (int t = 0; t < count; t += MR) {
        Vec sum[MR];
        unroll<MR>([&](auto i) { sum[i] = bias; });
        for (int64_t r = 0; r < rank; ++r) {
            const Vec w = Vec::load(weight + r * W);
            unroll<MR>([&](auto i) { sum[i] = fma(Vec::set(low_rank[(t + i) * stride + r]), w, sum[i]); });
        }
        unroll<MR>([&](auto i) { sum[i].store(out + (t + i) * W); });
    }
}

}  // namespace VISION_SSM_ISA
