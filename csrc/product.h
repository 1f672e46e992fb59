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
constexpr int HALF = TOKENS / 2;  // for a rest that is no longer than that
constexpr int VECTORS = 3;
constexpr int64_t PANEL = VECTORS * W;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Transpose a matrix [rows][columns] to [columns][rows], rows rounded up to whole vectors with zeros.
template <class P>
void turn(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += W) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min<int64_t>(columns - column, W);
            Vec square[W];
            for (int i = 0; i < W; ++i)
                square[i] = i < height ? load(from + (row + i) * from_stride + column, static_cast<int>(width)) : Vec::set(0.f);
            transpose(square);
            for (int i = 0; i < width; ++i) square[i].store(to + (column + i) * to_stride + row);
        }
}

// out [M][V * W] = rows [M][count] times w [count][stride], V vectors of it.
template <int M, int V>
inline void multiply_panel(const float* rows, int64_t row_stride, int64_t count, const float* w, int64_t stride,
                           float* out, int64_t out_stride) {
    Vec sum[M * V];
    unroll<M * V>([&](auto i) { sum[i] = Vec::set(0.f); });
    for (int64_t c = 0; c < count; ++c) {
        Vec row[V];
        unroll<V>([&](auto v) { row[v] = Vec::load(w + c * stride + v * W); });
        unroll<M>([&](auto t) {
            const Vec x = Vec::set(rows[t * row_stride + c]);
            unroll<V>([&](auto v) { sum[t * V + v] = fma(x, row[v], sum[t * V + v]); });
        });
    }
    unroll<M>([&](auto t) { unroll<V>([&](auto v) { sum[t * V + v].store(out + t * out_stride + v * W); }); });
}

// A weight matrix [outputs][inputs] as panels [inputs][PANEL], the last as wide as is left: a panel is read in order,
// and stays in the first-level cache from one group of tokens to the next.
struct Packed {
    int64_t inputs = 0, outputs = 0;
    float* data = nullptr;

    static int64_t size(int64_t outputs, int64_t inputs) { return round_up(outputs, W) * inputs; }
    int64_t width() const { return round_up(outputs, W); }
    int64_t panels() const { return (width() + PANEL - 1) / PANEL; }
    int64_t panel_width(int64_t panel) const { return std::min(width() - panel * PANEL, PANEL); }

    template <class P>
    void fill(const P* weights, int64_t panel) {
        const int64_t first = panel * PANEL;
        turn(weights + first * inputs, inputs, std::min(outputs - first, PANEL), inputs, data + first * inputs,
             panel_width(panel));
    }
    // out [tokens][width()] = rows [tokens][inputs] times the matrix. Rows are read and written up to a multiple of HALF.
    void multiply(const float* rows, int64_t row_stride, int tokens, float* out, int64_t out_stride) const {
        for (int64_t panel = 0; panel < panels(); ++panel) {
            const int64_t first = panel * PANEL, wide = panel_width(panel);
            const float* w = data + first * inputs;
            const auto all = [&](auto vectors) {
                for (int t = 0; t < tokens; t += TOKENS) {
                    const float* from = rows + t * row_stride;
                    float* to = out + t * out_stride + first;
                    if (tokens - t > HALF)
                        multiply_panel<TOKENS, vectors>(from, row_stride, inputs, w, wide, to, out_stride);
                    else
                        multiply_panel<HALF, vectors>(from, row_stride, inputs, w, wide, to, out_stride);
                }
            };
            if (wide == PANEL)
                all(std::integral_constant<int, VECTORS>{});
            else if (wide == 2 * W)
                all(std::integral_constant<int, 2>{});
            else
                all(std::integral_constant<int, 1>{});
        }
    }
};

}  // namespace VISION_SSM_ISA
