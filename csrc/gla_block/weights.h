// The weights of a block, packed once for all threads.
#pragma once

#include "common/arena.h"
#include "common/gemm.h"
#include "common/norm.h"
#include "include/gla_block.h"

#include <algorithm>
#include <array>

namespace VISION_SSM_ISA {

struct GlaBlockWeights {
    static constexpr int TAPS = 9;

    Norm norm, norm2, g_norm, l_norm;
    PackedMatrix qkv_proj, gate_down, gate_up, g_proj, o_proj, fc1_gate, fc1_value, fc2;
    float *taps, *gate_bias, *g_bias;  // [TAPS][C], [C], [C], with zeros up to whole vectors

    static int64_t size(const vssm_gla_block& s) {
        const int64_t C = s.channels, vector = round_up(C, W);
        const auto product = [](int64_t outputs, int64_t inputs) {
            return PackedMatrix::size(outputs, inputs) + Arena::LINE;
        };
        return product(2 * C, C) + product(s.rank, C) + product(C, s.rank) + 2 * product(C, C) +
               2 * product(s.hidden, C) + product(C, s.hidden) + 2 * Norm::size(C) + 2 * Norm::size(C / s.heads) +
               (TAPS + 2) * vector + 3 * Arena::LINE;
    }
    GlaBlockWeights(const vssm_gla_block& s, Arena& arena)
        : norm(s.channels, arena),
          norm2(s.channels, arena),
          g_norm(s.channels / s.heads, arena),
          l_norm(s.channels / s.heads, arena) {
        const int64_t C = s.channels;
        const auto product = [&](int64_t outputs, int64_t inputs) {
            const bool pairs = PackedMatrix::takes_pairs(s.product_dtype);
            return PackedMatrix{inputs, outputs, arena.take(PackedMatrix::size(outputs, inputs)), pairs};
        };
        qkv_proj = product(2 * C, C);
        gate_down = product(s.rank, C);
        gate_up = product(C, s.rank);
        g_proj = product(C, C);
        o_proj = product(C, C);
        fc1_gate = product(s.hidden, C);
        fc1_value = product(s.hidden, C);
        fc2 = product(C, s.hidden);
        taps = arena.take(TAPS * round_up(C, W));
        gate_bias = arena.take(round_up(C, W));
        g_bias = arena.take(round_up(C, W));
    }

    // Packing is cut into this many independent parts; the first is all but the products.
    int64_t parts() const {
        int64_t count = 1;
        for (const PackedMatrix* product : products()) count += product->panels();
        return count;
    }
    template <class P>
    void pack(const vssm_gla_block& s, int64_t part) {
        if (part == 0) return pack_all_but_products<P>(s);
        const auto* fc1 = static_cast<const P*>(s.fc1);
        const void* const sources[] = {s.qkv_proj, s.gate_down, s.gate_up, s.g_proj,
                                       s.o_proj,   fc1,         fc1 + s.hidden * s.channels, s.fc2};
        int64_t panel = part - 1;
        const void* const* source = sources;
        for (PackedMatrix* product : products()) {
            if (panel < product->panels()) return product->pack(static_cast<const P*>(*source), panel);
            panel -= product->panels();
            ++source;
        }
    }
    void pack(const vssm_gla_block& s, int64_t part) {
        s.parameter_dtype == VSSM_BFLOAT16 ? pack<bfloat16>(s, part) : pack<float>(s, part);
    }

  private:
    std::array<PackedMatrix*, 8> products() {
        return {&qkv_proj, &gate_down, &gate_up, &g_proj, &o_proj, &fc1_gate, &fc1_value, &fc2};
    }
    std::array<const PackedMatrix*, 8> products() const {
        return {&qkv_proj, &gate_down, &gate_up, &g_proj, &o_proj, &fc1_gate, &fc1_value, &fc2};
    }
    template <class P>
    void pack_all_but_products(const vssm_gla_block& s) {
        norm.pack<P>(s.norm, s.eps, s.norm_weight, s.norm_bias);
        norm2.pack<P>(s.norm2, s.eps2, s.norm2_weight, s.norm2_bias);
        g_norm.pack<P>(VSSM_NORM_RMS, s.g_eps, s.g_norm, nullptr);
        l_norm.pack<P>(VSSM_NORM_RMS, s.l_eps, s.l_norm, nullptr);
        transpose(static_cast<const P*>(s.conv), TAPS, s.channels, TAPS, taps, round_up(s.channels, W));
        for (int64_t c = 0; c < s.channels; c += W) {
            const int lanes = static_cast<int>(std::min<int64_t>(s.channels - c, W));
            load(static_cast<const P*>(s.gate_bias) + c, lanes).store(gate_bias + c);
            load(static_cast<const P*>(s.g_bias) + c, lanes).store(g_bias + c);
        }
    }
};

}  // namespace VISION_SSM_ISA
