// Matrices rearranged: transposed, and rounded to pairs of bfloat16.
#pragma once

#include "common/rounding.h"
#include "common/rows.h"

#include <algorithm>
#include <type_traits>

namespace VISION_SSM_ISA {

// A row as bfloat16, in pairs, zeros up to whole vectors of them.
template <class P>
void pack_row_as_pairs(const P* from, int64_t count, float* to) {
    bfloat16* out = reinterpret_cast<bfloat16*>(to);
    int64_t c = 0;
    for (; c + W <= count; c += W) Vec::load(from + c).store(out + c);
    for (; c < round_up(count, 2 * W); c += W)
        (c < count ? load(from + c, static_cast<int>(count - c)) : Vec::set(0.f)).store(out + c);
}

// Transpose a matrix [rows][columns] to [columns][rows], rows rounded up to whole vectors with zeros.
template <class P>
void transpose(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += W) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min<int64_t>(columns - column, W);
            const P* corner = from + row * from_stride + column;
            float* transposed = to + column * to_stride + row;
            if constexpr (std::is_same_v<P, float>) {
                if (height == W && width == W) {
                    transpose_square(corner, from_stride, transposed, to_stride);
                    continue;
                }
            }
            alignas(64) float square[W * W], columns_of_it[W * W];
            const auto row_of = [&](int i) {
                return i < height ? load(corner + i * from_stride, static_cast<int>(width)) : Vec::set(0.f);
            };
            for (int i = 0; i < W; ++i) row_of(i).store(square + i * W);
            transpose_square(square, W, columns_of_it, W);
            for (int i = 0; i < width; ++i) Vec::load(columns_of_it + i * W).store(transposed + i * to_stride);
        }
}

// The same with pairs of neighbours in a row, as bfloat16, in the place of single elements; a last one is paired with
// 0.
template <class P>
void transpose_pairs(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    constexpr int64_t BOTH = 2 * W;
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += BOTH) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min(columns - column, BOTH);
            const P* corner = from + row * from_stride + column;
            float* transposed = to + column / 2 * to_stride + row;
            if constexpr (std::is_same_v<P, bfloat16>) {
                if (height == W && width == BOTH && from_stride % 2 == 0) {
                    transpose_square(reinterpret_cast<const float*>(corner), from_stride / 2, transposed, to_stride);
                    continue;
                }
            }
            alignas(64) float square[W * W] = {}, columns_of_it[W * W];
            for (int64_t i = 0; i < height; ++i) pack_row_as_pairs(corner + i * from_stride, width, square + i * W);
            transpose_square(square, W, columns_of_it, W);
            for (int64_t i = 0; i < (width + 1) / 2; ++i)
                Vec::load(columns_of_it + i * W).store(transposed + i * to_stride);
        }
}

}  // namespace VISION_SSM_ISA
