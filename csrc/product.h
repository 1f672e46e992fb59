// Products of a few rows of tokens with a weight matrix rearranged for it, at the rate of the multiply-add units.
#pragma once

#include "tile.h"

namespace VISION_SSM_ISA {

// Tokens whose results are accumulated together in registers, times VECTORS vectors of outputs.
#if defined(__AVX512F__)
constexpr int TOKENS = 8;
#else
constexpr int TOKENS = 4;
#endif
constexpr int ROWS = 64;  // most tokens that one thread takes to a product at a time
constexpr int FEW = TOKENS / 2;  // for the last tokens, if there are no more than that
constexpr int VECTORS = 3;
constexpr int64_t PANEL = VECTORS * W;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Transpose a matrix [rows][columns] to [columns][rows], rows rounded up to whole vectors with zeros.
template <class P>
void turn(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += W) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min<int64_t>(columns - column, W);
            const P* corner = from + row * from_stride + column;
            float* turned = to + column * to_stride + row;
            if constexpr (std::is_same_v<P, float>) {
                if (height == W && width == W) {
                    turn_square(corner, from_stride, turned, to_stride);
                    continue;
                }
            }
            alignas(64) float square[W * W], columns_of_it[W * W];
            const auto row_of = [&](int i) {
                return i < height ? load(corner + i * from_stride, static_cast<int>(width)) : Vec::set(0.f);
            };
            for (int i = 0; i < W; ++i) row_of(i).store(square + i * W);
            turn_square(square, W, columns_of_it, W);
            for (int i = 0; i < width; ++i) Vec::load(columns_of_it + i * W).store(turned + i * to_stride);
        }
}

// out [M][V * W] = rows [M][count] times w [count][V * W], or that added to out.
template <int M, int V, bool ADD>
inline void multiply_panel(const float* rows, int64_t row_stride, int64_t count, const float* w, float* out,
                           int64_t out_stride) {
    Vec sum[M * V];
    if constexpr (ADD)
        unroll<M>([&](auto t) {
            unroll<V>([&](auto v) { sum[t * V + v] = Vec::load(out + t * out_stride + v * W); });
        });
    else
        unroll<M * V>([&](auto i) { sum[i] = Vec::set(0.f); });
    for (int64_t c = 0; c < count; ++c) {
        Vec row[V];
        unroll<V>([&](auto v) { row[v] = Vec::load(w + (c * V + v) * W); });
        unroll<M>([&](auto t) {
            const Vec x = Vec::set(rows[t * row_stride + c]);
            unroll<V>([&](auto v) { sum[t * V + v] = fma(x, row[v], sum[t * V + v]); });
        });
    }
    unroll<M>([&](auto t) { unroll<V>([&](auto v) { sum[t * V + v].store(out + t * out_stride + v * W); }); });
}

// A weight matrix [outputs][inputs] as panels [inputs][PANEL], the last as wide as is left: a panel is read in order,
// and stays in the first-level cache from one group of tokens to the next. All panels are filled before they are used;
// or, with `source`, a product makes them in one place as it comes to them, DEPTH inputs at a time so that they never
// leave the first-level cache. That pays where there are tokens enough, and no other product needs the panel.
struct Packed {
    static constexpr int64_t DEPTH = 96;

    int64_t inputs = 0, outputs = 0;
    float* data = nullptr;
    const void* source = nullptr;
    int32_t source_dtype = VSSM_FLOAT32;

    static int64_t size(int64_t outputs, int64_t inputs) { return round_up(outputs, W) * inputs; }
    static int64_t size_with_source() { return PANEL * DEPTH; }
    int64_t width() const { return round_up(outputs, W); }
    int64_t panels() const { return (width() + PANEL - 1) / PANEL; }
    int64_t panel_width(int64_t panel) const { return std::min(width() - panel * PANEL, PANEL); }

    template <class P>
    void fill(const P* weights, int64_t panel) {
        turn_panel(weights, panel, 0, inputs, data + panel * PANEL * inputs);
    }
    // The same from the matrix turned, [inputs][outputs], times a factor.
    void fill_turned(const float* weights, int64_t panel, float factor) {
        const int64_t first = panel * PANEL, wide = panel_width(panel);
        float* to = data + first * inputs;
        for (int64_t c = 0; c < inputs; ++c)
            for (int64_t at = 0; at < wide; at += W) {
                const int lanes = static_cast<int>(std::min<int64_t>(outputs - first - at, W));
                (load(weights + c * outputs + first + at, lanes) * Vec::set(factor)).store(to + c * wide + at);
            }
    }
    // out [tokens][width()] = rows [tokens][inputs] times the matrix. Rows are read and written up to a multiple of
    // FEW.
    void multiply(const float* rows, int64_t row_stride, int tokens, float* out, int64_t out_stride) const {
        for (int64_t panel = 0; panel < panels(); ++panel) {
            float* to = out + panel * PANEL;
            if (source) {
                multiply_source(panel, rows, row_stride, tokens, to, out_stride);
            } else {
                const float* w = data + panel * PANEL * inputs;
                multiply_part<false>(panel, w, rows, row_stride, inputs, tokens, to, out_stride);
            }
        }
    }

    const void* source_panel(int64_t panel) const { return static_cast<const char*>(source) + panel * panel_bytes(); }
    int64_t panel_bytes() const { return PANEL * inputs * (source_dtype == VSSM_BFLOAT16 ? 2 : 4); }

  private:
    // `count` inputs of a panel from `first` on.
    template <class P>
    void turn_panel(const P* weights, int64_t panel, int64_t first, int64_t count, float* to) const {
        const int64_t output = panel * PANEL, height = std::min(outputs - output, PANEL);
        turn(weights + output * inputs + first, inputs, height, count, to, panel_width(panel));
    }
    // Products with a panel of the source; the next panel's weights are fetched meanwhile.
    void multiply_source(int64_t panel, const float* rows, int64_t row_stride, int tokens, float* out,
                         int64_t out_stride) const {
        Upcoming next;
        if (panel + 1 < panels()) next.add(source_panel(panel + 1), panel_bytes());
        for (int64_t first = 0; first < inputs; first += DEPTH) {
            const int64_t count = std::min(inputs - first, DEPTH);
            if (source_dtype == VSSM_BFLOAT16)
                turn_panel(static_cast<const bfloat16*>(source), panel, first, count, data);
            else
                turn_panel(static_cast<const float*>(source), panel, first, count, data);
            if (first)
                multiply_part<true>(panel, data, rows + first, row_stride, count, tokens, out, out_stride, &next);
            else
                multiply_part<false>(panel, data, rows, row_stride, count, tokens, out, out_stride, &next);
        }
    }
    // Products with a panel's weights w for `count` inputs, added to out or not; `next` is fetched meanwhile.
    template <bool ADD>
    void multiply_part(int64_t panel, const float* w, const float* rows, int64_t row_stride, int64_t count, int tokens,
                       float* out, int64_t out_stride, Upcoming* next = nullptr) const {
        const int64_t wide = panel_width(panel);
        const int groups = (tokens + TOKENS - 1) / TOKENS;
        const int lines = next ? static_cast<int>(next->lines() * count / (inputs * groups)) + 1 : 0;
        const auto all = [&](auto vectors) {
            for (int t = 0; t < tokens; t += TOKENS) {
                if (next) next->fetch(lines);
                const float* from = rows + t * row_stride;
                float* to = out + t * out_stride;
                if (tokens - t > FEW)
                    multiply_panel<TOKENS, vectors, ADD>(from, row_stride, count, w, to, out_stride);
                else
                    multiply_panel<FEW, vectors, ADD>(from, row_stride, count, w, to, out_stride);
            }
        };
        if (wide == PANEL)
            all(std::integral_constant<int, VECTORS>{});
        else if (wide == 2 * W)
            all(std::integral_constant<int, 2>{});
        else
            all(std::integral_constant<int, 1>{});
    }
};

}  // namespace VISION_SSM_ISA
