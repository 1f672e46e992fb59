// Matrix products (GEMM) of a few rows of tokens with a weight matrix packed for it, at the rate of the multiply-add
// units.
//
// As in GotoBLAS and BLIS: a micro-kernel accumulates MR rows times NR columns in registers, weights come in panels of
// NR columns packed in the order in which it reads them, and long sums are cut into slabs of KC.
#pragma once

#include "common/prefetch.h"
#include "common/transpose.h"
#include "common/unroll.h"

#include <algorithm>
#include <type_traits>

namespace VISION_SSM_ISA {

// Tokens of a micro-kernel.
#if defined(__AVX512F__)
constexpr int MR = 8;
#else
constexpr int MR = 4;
#endif
constexpr int HALF_MR = MR / 2;  // for the last tokens, if there are no more than that
// Its outputs, in vectors and in floats.
constexpr int NR_VECTORS = 3;
constexpr int64_t NR = NR_VECTORS * W;
constexpr int MC = 64;  // most tokens that one thread takes to a product at a time

// out [M][V * W] = rows [M][count] times w [count][V * W], or that added to out; with PAIRS the elements of both are
// pairs of bfloat16. Added at the end: a long sum in pieces keeps more of its digits.
template <int M, int V, bool ADD, bool PAIRS = false>
inline void micro_kernel(const float* rows, int64_t row_stride, int64_t count, const float* w, float* out,
                         int64_t out_stride) {
    Vec sum[M * V];
    unroll<M * V>([&](auto i) { sum[i] = Vec::set(0.f); });
    for (int64_t c = 0; c < count; ++c) {
        Vec row[V];
        unroll<V>([&](auto v) { row[v] = Vec::load(w + (c * V + v) * W); });
        unroll<M>([&](auto t) {
            const Vec x = Vec::set(rows[t * row_stride + c]);
            unroll<V>([&](auto v) {
                if constexpr (PAIRS)
                    sum[t * V + v] = add_products(x, row[v], sum[t * V + v]);
                else
                    sum[t * V + v] = fma(x, row[v], sum[t * V + v]);
            });
        });
    }
    unroll<M>([&](auto t) {
        unroll<V>([&](auto v) {
            float* to = out + t * out_stride + v * W;
            if constexpr (ADD) sum[t * V + v] = Vec::load(to) + sum[t * V + v];
            sum[t * V + v].store(to);
        });
    });
}

// A weight matrix [outputs][inputs] packed as panels [inputs][NR], the last as wide as is left: a panel is read in
// order, and stays in the first-level cache from one group of tokens to the next. All panels are packed before they are
// used; or, with `source`, a product packs them in one place as it comes to them, KC_SOURCE rows of them at a time so
// that they never leave the first-level cache. That pays where there are tokens enough, and no other product needs the
// panel. With `pairs` a row of a panel is for a pair of inputs, as bfloat16, instead of one.
struct PackedMatrix {
    static constexpr int64_t KC_SOURCE = 96;
    static constexpr int64_t KC = 384;  // most rows in one sum where all panels are there

    int64_t inputs = 0, outputs = 0;
    float* data = nullptr;
    bool pairs = false;
    const void* source = nullptr;
    int32_t source_dtype = VSSM_FLOAT32;

    // Whether products are of pairs, asked for a dtype of them.
    static bool takes_pairs(int32_t product_dtype) { return MULTIPLIES_PAIRS && product_dtype == VSSM_BFLOAT16; }
    // Floats that a row of a product takes as pairs, or none where products are not of pairs.
    static int64_t pairs_stride(int64_t inputs, int32_t product_dtype) {
        return takes_pairs(product_dtype) ? pairs_stride(inputs) : 0;
    }

    static int64_t size(int64_t outputs, int64_t inputs) { return round_up(outputs, W) * inputs; }
    static int64_t size_with_source() { return NR * KC_SOURCE; }
    int64_t pairs_stride() const { return pairs ? pairs_stride(inputs) : 0; }
    int64_t depth() const { return pairs ? (inputs + 1) / 2 : inputs; }
    int64_t width() const { return round_up(outputs, W); }
    int64_t panels() const { return ceil_div(width(), NR); }
    int64_t panel_width(int64_t panel) const { return std::min(width() - panel * NR, NR); }

    template <class P>
    void pack(const P* weights, int64_t panel) {
        pack_slab(weights, panel, 0, depth(), data + panel * NR * depth());
    }
    // The same from the transposed matrix, [inputs][outputs], times a factor.
    void pack_transposed(const float* weights, int64_t panel, float factor) {
        const int64_t first = panel * NR, wide = panel_width(panel);
        float* to = data + first * depth();
        const auto scaled = [&](int64_t input, int64_t at) {
            if (input >= inputs) return Vec::set(0.f);
            const int lanes = static_cast<int>(std::min<int64_t>(outputs - first - at, W));
            return load(weights + input * outputs + first + at, lanes) * Vec::set(factor);
        };
        const auto pack_with = [&](auto&& row) {
            for (int64_t i = 0; i < depth(); ++i)
                for (int64_t at = 0; at < wide; at += W) row(i, at).store(to + i * wide + at);
        };
        if constexpr (MULTIPLIES_PAIRS) {
            if (pairs)
                return pack_with(
                    [&](int64_t i, int64_t at) { return paired(scaled(2 * i, at), scaled(2 * i + 1, at)); });
        }
        pack_with(scaled);
    }
    // out [tokens][width()] = rows [tokens][inputs] times the matrix. Rows are read and written up to a multiple of
    // HALF_MR. A product of pairs needs scratch for so many rows of pairs_stride.
    void multiply(const float* rows, int64_t row_stride, int tokens, float* out, int64_t out_stride,
                  float* scratch = nullptr) const {
        const Operand of = operand(rows, row_stride, tokens, scratch);
        for (int64_t panel = 0; panel < panels(); ++panel) multiply_panel(panel, of, out + panel * NR, out_stride);
    }

    // The same in steps: rows as a product takes them, and the outputs of one panel.
    struct Operand {
        const float* rows;
        int64_t stride;
        int tokens;
    };
    Operand operand(const float* rows, int64_t row_stride, int tokens, float* scratch) const {
        if (!pairs) return {rows, row_stride, tokens};
        const int64_t stride = pairs_stride();
        for (int t = 0; t < tokens; ++t) pack_row_as_pairs(rows + t * row_stride, inputs, scratch + t * stride);
        return {scratch, stride, tokens};
    }
    void multiply_panel(int64_t panel, const Operand& of, float* out, int64_t out_stride) const {
        if (source) return multiply_source(panel, of.rows, of.stride, of.tokens, out, out_stride);
        const float* w = data + panel * NR * depth();
        for (int64_t first = 0; first < depth(); first += KC) {
            const int64_t count = std::min(depth() - first, KC);
            const float *rows = of.rows + first, *part = w + first * panel_width(panel);
            if (first)
                multiply_slab<true>(panel, part, rows, of.stride, count, of.tokens, out, out_stride);
            else
                multiply_slab<false>(panel, part, rows, of.stride, count, of.tokens, out, out_stride);
        }
    }

    const void* source_panel(int64_t panel) const { return static_cast<const char*>(source) + panel * panel_bytes(); }
    int64_t panel_bytes() const { return NR * inputs * (source_dtype == VSSM_BFLOAT16 ? 2 : 4); }

  private:
    static int64_t pairs_stride(int64_t inputs) { return round_up(inputs, 2 * W) / 2; }
    // `count` rows of a panel from `first` on.
    template <class P>
    void pack_slab(const P* weights, int64_t panel, int64_t first, int64_t count, float* to) const {
        const int64_t output = panel * NR, height = std::min(outputs - output, NR);
        const P* from = weights + output * inputs;
        if (pairs)
            transpose_pairs(from + 2 * first, inputs, height, std::min(2 * count, inputs - 2 * first), to,
                            panel_width(panel));
        else
            transpose(from + first, inputs, height, count, to, panel_width(panel));
    }
    // Products with a panel of the source; the next panel's weights are fetched meanwhile.
    void multiply_source(int64_t panel, const float* rows, int64_t row_stride, int tokens, float* out,
                         int64_t out_stride) const {
        PrefetchQueue next;
        if (panel + 1 < panels()) next.add(source_panel(panel + 1), panel_bytes());
        for (int64_t first = 0; first < depth(); first += KC_SOURCE) {
            const int64_t count = std::min(depth() - first, KC_SOURCE);
            if (source_dtype == VSSM_BFLOAT16)
                pack_slab(static_cast<const bfloat16*>(source), panel, first, count, data);
            else
                pack_slab(static_cast<const float*>(source), panel, first, count, data);
            if (first)
                multiply_slab<true>(panel, data, rows + first, row_stride, count, tokens, out, out_stride, &next);
            else
                multiply_slab<false>(panel, data, rows, row_stride, count, tokens, out, out_stride, &next);
        }
    }
    // Products with `count` rows w of a panel, added to out or not; `next` is fetched meanwhile.
    template <bool ADD>
    void multiply_slab(int64_t panel, const float* w, const float* rows, int64_t row_stride, int64_t count, int tokens,
                       float* out, int64_t out_stride, PrefetchQueue* next = nullptr) const {
        const int64_t wide = panel_width(panel);
        const int groups = (tokens + MR - 1) / MR;
        const int lines = next ? static_cast<int>(next->lines() * count / (depth() * groups)) + 1 : 0;
        const auto all = [&](auto vectors, auto of_pairs) {
            for (int t = 0; t < tokens; t += MR) {
                if (next) next->fetch(lines);
                const float* from = rows + t * row_stride;
                float* to = out + t * out_stride;
                if (tokens - t > HALF_MR)
                    micro_kernel<MR, vectors, ADD, of_pairs>(from, row_stride, count, w, to, out_stride);
                else
                    micro_kernel<HALF_MR, vectors, ADD, of_pairs>(from, row_stride, count, w, to, out_stride);
            }
        };
        const auto of_width = [&](auto of_pairs) {
            if (wide == NR)
                all(std::integral_constant<int, NR_VECTORS>{}, of_pairs);
            else if (wide == 2 * W)
                all(std::integral_constant<int, 2>{}, of_pairs);
            else
                all(std::integral_constant<int, 1>{}, of_pairs);
        };
        if constexpr (MULTIPLIES_PAIRS) {
            if (pairs) return of_width(std::true_type{});
        }
        of_width(std::false_type{});
    }
};

}  // namespace VISION_SSM_ISA
