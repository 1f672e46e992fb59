// Sums of outer products over tokens: what the gradients of matrices are.
#pragma once

#include "product.h"

namespace VISION_SSM_ISA {

// Call f with `value` as a constant, 1 <= value <= Most.
template <int Most, class F>
void with_constant(int64_t value, F&& f) {
    if constexpr (Most > 1)
        if (value < Most) return with_constant<Most - 1>(value, f);
    f(std::integral_constant<int, Most>{});
}

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

// The gradient of a weight matrix [height][width]: factor times the sum over the tokens of all images of given[token]
// [height] times taken[token] [width], the gradient of what the matrix yields and what it takes. Rows of `taken` are
// read up to whole vectors.
struct WeightGradient {
    float* out;
    const vssm_tensor &given, &taken;
    int64_t height, width;
    float factor;

    // One of `shares` of the rows, a thread's.
    void add_up(int64_t images, int64_t tokens, int64_t share, int64_t shares) const {
        const int64_t groups = (height + TOKENS - 1) / TOKENS;
        const int64_t first = groups * share / shares * TOKENS;
        const int64_t end = std::min(groups * (share + 1) / shares * TOKENS, height);
        std::fill(out + first * width, out + end * width, 0.f);
        for (int64_t image = 0; image < images; ++image)
            for (int64_t t = 0; t < tokens; t += DEPTH)
                add(Rows<float>(given, image, 0), Rows<float>(taken, image, 0), t,
                    static_cast<int>(std::min(tokens - t, DEPTH)), first, end);
        if (factor == 1.f) return;
        for (int64_t i = first * width; i < end * width; ++i) out[i] *= factor;
    }

  private:
    static constexpr int64_t DEPTH = 128;  // tokens at a time, so that a panel of theirs stays in the first-level cache

    void add(const Rows<float>& from, const Rows<float>& with, int64_t t, int count, int64_t first, int64_t end) const {
        for (int64_t column = 0; column < width; column += PANEL) {
            int lanes[VECTORS];
            for (int v = 0; v < VECTORS; ++v)
                lanes[v] = static_cast<int>(std::min<int64_t>(width - column - v * W, W));
            with_constant<VECTORS>((std::min(width - column, PANEL) + W - 1) / W, [&](auto vectors) {
                for_state_groups<TOKENS>(end - first, [&](int64_t row, auto rows) {
                    add_outer<rows, vectors>(from.row(t) + first + row, from.stride, with.row(t) + column, W,
                                             with.stride, count, out + (first + row) * width + column, width, lanes);
                });
            });
        }
    }
};

}  // namespace VISION_SSM_ISA
