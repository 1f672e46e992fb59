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

// A row as bfloat16, in pairs, zeros up to whole vectors of them.
template <class P>
void narrow_row(const P* from, int64_t count, float* to) {
    bfloat16* out = reinterpret_cast<bfloat16*>(to);
    int64_t c = 0;
    for (; c + W <= count; c += W) Vec::load(from + c).store(out + c);
    for (; c < round_up(count, 2 * W); c += W)
        (c < count ? load(from + c, static_cast<int>(count - c)) : Vec::set(0.f)).store(out + c);
}

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

// The same with pairs of neighbours in a row, as bfloat16, in the place of single elements; a last one is paired with 0.
template <class P>
void turn_pairs(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    constexpr int64_t BOTH = 2 * W;
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += BOTH) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min(columns - column, BOTH);
            const P* corner = from + row * from_stride + column;
            float* turned = to + column / 2 * to_stride + row;
            if constexpr (std::is_same_v<P, bfloat16>) {
                if (height == W && width == BOTH && from_stride % 2 == 0) {
                    turn_square(reinterpret_cast<const float*>(corner), from_stride / 2, turned, to_stride);
                    continue;
                }
            }
            alignas(64) float square[W * W] = {}, columns_of_it[W * W];
            for (int64_t i = 0; i < height; ++i) narrow_row(corner + i * from_stride, width, square + i * W);
            turn_square(square, W, columns_of_it, W);
            for (int64_t i = 0; i < (width + 1) / 2; ++i) Vec::load(columns_of_it + i * W).store(turned + i * to_stride);
        }
}

// out [M][V * W] = rows [M][count] times w [count][V * W], or that added to out; with PAIRS the elements of both are
// pairs of bfloat16. Added at the end: a long sum in pieces keeps more of its digits.
template <int M, int V, bool ADD, bool PAIRS = false>
inline void multiply_panel(const float* rows, int64_t row_stride, int64_t count, const float* w, float* out,
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

// A weight matrix [outputs][inputs] as panels [inputs][PANEL], the last as wide as is left: a panel is read in order,
// and stays in the first-level cache from one group of tokens to the next. All panels are filled before they are used;
// or, with `source`, a product makes them in one place as it comes to them, DEPTH rows of them at a time so that they
// never leave the first-level cache. That pays where there are tokens enough, and no other product needs the panel.
// With `pairs` a row of a panel is for a pair of inputs, as bfloat16, instead of one.
struct Packed {
    static constexpr int64_t DEPTH = 96;
    static constexpr int64_t LONGEST = 384;  // most rows in one sum where all panels are there

    int64_t inputs = 0, outputs = 0;
    float* data = nullptr;
    bool pairs = false;
    const void* source = nullptr;
    int32_t source_dtype = VSSM_FLOAT32;

    // Whether products are of pairs, asked for a dtype of them.
    static bool takes_pairs(int32_t product_dtype) { return MULTIPLIES_PAIRS && product_dtype == VSSM_BFLOAT16; }
    // Floats that a row takes as pairs.
    static int64_t pairs_stride(int64_t inputs) { return round_up(inputs, 2 * W) / 2; }

    static int64_t size(int64_t outputs, int64_t inputs) { return round_up(outputs, W) * inputs; }
    static int64_t size_with_source() { return PANEL * DEPTH; }
    int64_t depth() const { return pairs ? (inputs + 1) / 2 : inputs; }
    int64_t width() const { return round_up(outputs, W); }
    int64_t panels() const { return (width() + PANEL - 1) / PANEL; }
    int64_t panel_width(int64_t panel) const { return std::min(width() - panel * PANEL, PANEL); }

    template <class P>
    void fill(const P* weights, int64_t panel) {
        turn_panel(weights, panel, 0, depth(), data + panel * PANEL * depth());
    }
    // The same from the matrix turned, [inputs][outputs], times a factor.
    void fill_turned(const float* weights, int64_t panel, float factor) {
        const int64_t first = panel * PANEL, wide = panel_width(panel);
        float* to = data + first * depth();
        const auto scaled = [&](int64_t input, int64_t at) {
            if (input >= inputs) return Vec::set(0.f);
            const int lanes = static_cast<int>(std::min<int64_t>(outputs - first - at, W));
            return load(weights + input * outputs + first + at, lanes) * Vec::set(factor);
        };
        const auto fill_with = [&](auto&& row) {
            for (int64_t i = 0; i < depth(); ++i)
                for (int64_t at = 0; at < wide; at += W) row(i, at).store(to + i * wide + at);
        };
        if constexpr (MULTIPLIES_PAIRS) {
            if (pairs)
                return fill_with([&](int64_t i, int64_t at) { return paired(scaled(2 * i, at), scaled(2 * i + 1, at)); });
        }
        fill_with(scaled);
    }
    // out [tokens][width()] = rows [tokens][inputs] times the matrix. Rows are read and written up to a multiple of
    // FEW. A product of pairs needs room for so many rows of pairs_stride(inputs).
    void multiply(const float* rows, int64_t row_stride, int tokens, float* out, int64_t out_stride,
                  float* room = nullptr) const {
        const Operand of = operand(rows, row_stride, tokens, room);
        for (int64_t panel = 0; panel < panels(); ++panel) multiply_one(panel, of, out + panel * PANEL, out_stride);
    }

    // The same in steps: rows as a product takes them, and the outputs of one panel.
    struct Operand {
        const float* rows;
        int64_t stride;
        int tokens;
    };
    Operand operand(const float* rows, int64_t row_stride, int tokens, float* room) const {
        if (!pairs) return {rows, row_stride, tokens};
        const int64_t stride = pairs_stride(inputs);
        for (int t = 0; t < tokens; ++t) narrow_row(rows + t * row_stride, inputs, room + t * stride);
        return {room, stride, tokens};
    }
    void multiply_one(int64_t panel, const Operand& of, float* out, int64_t out_stride) const {
        if (source) return multiply_source(panel, of.rows, of.stride, of.tokens, out, out_stride);
        const float* w = data + panel * PANEL * depth();
        for (int64_t first = 0; first < depth(); first += LONGEST) {
            const int64_t count = std::min(depth() - first, LONGEST);
            const float *rows = of.rows + first, *part = w + first * panel_width(panel);
            if (first)
                multiply_part<true>(panel, part, rows, of.stride, count, of.tokens, out, out_stride);
            else
                multiply_part<false>(panel, part, rows, of.stride, count, of.tokens, out, out_stride);
        }
    }

    const void* source_panel(int64_t panel) const { return static_cast<const char*>(source) + panel * panel_bytes(); }
    int64_t panel_bytes() const { return PANEL * inputs * (source_dtype == VSSM_BFLOAT16 ? 2 : 4); }

  private:
    // `count` rows of a panel from `first` on.
    template <class P>
    void turn_panel(const P* weights, int64_t panel, int64_t first, int64_t count, float* to) const {
        const int64_t output = panel * PANEL, height = std::min(outputs - output, PANEL);
        const P* from = weights + output * inputs;
        if (pairs)
            turn_pairs(from + 2 * first, inputs, height, std::min(2 * count, inputs - 2 * first), to,
                       panel_width(panel));
        else
            turn(from + first, inputs, height, count, to, panel_width(panel));
    }
    // Products with a panel of the source; the next panel's weights are fetched meanwhile.
    void multiply_source(int64_t panel, const float* rows, int64_t row_stride, int tokens, float* out,
                         int64_t out_stride) const {
        Upcoming next;
        if (panel + 1 < panels()) next.add(source_panel(panel + 1), panel_bytes());
        for (int64_t first = 0; first < depth(); first += DEPTH) {
            const int64_t count = std::min(depth() - first, DEPTH);
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
    // Products with `count` rows w of a panel, added to out or not; `next` is fetched meanwhile.
    template <bool ADD>
    void multiply_part(int64_t panel, const float* w, const float* rows, int64_t row_stride, int64_t count, int tokens,
                       float* out, int64_t out_stride, Upcoming* next = nullptr) const {
        const int64_t wide = panel_width(panel);
        const int groups = (tokens + TOKENS - 1) / TOKENS;
        const int lines = next ? static_cast<int>(next->lines() * count / (depth() * groups)) + 1 : 0;
        const auto all = [&](auto vectors, auto of_pairs) {
            for (int t = 0; t < tokens; t += TOKENS) {
                if (next) next->fetch(lines);
                const float* from = rows + t * row_stride;
                float* to = out + t * out_stride;
                if (tokens - t > FEW)
                    multiply_panel<TOKENS, vectors, ADD, of_pairs>(from, row_stride, count, w, to, out_stride);
                else
                    multiply_panel<FEW, vectors, ADD, of_pairs>(from, row_stride, count, w, to, out_stride);
            }
        };
        const auto of_width = [&](auto of_pairs) {
            if (wide == PANEL)
                all(std::integral_constant<int, VECTORS>{}, of_pairs);
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
