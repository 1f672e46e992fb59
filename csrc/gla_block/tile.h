// A block's steps for a tile of tokens before the recurrence and after it, with the memory that they need.
#pragma once

#include "common/activations.h"
#include "gla_block/weights.h"

namespace VISION_SSM_ISA {

// One image's rows between the steps, [L][stride], with MR rows more: a product writes whole groups of tokens.
struct GlaBlockBuffers {
    int64_t stride, qkv_stride;
    float* normed;  // what the convolution reads; later what the recurrence yields
    float *local, *gates;
    float* qkv;

    static int64_t size(const vssm_gla_block& s) {
        const int64_t rows = s.height * s.width + MR;
        return rows * (3 * row_stride(s.channels) + row_stride(2 * s.channels)) + 4 * Arena::LINE;
    }
    GlaBlockBuffers(const vssm_gla_block& s, Arena& arena)
        : stride(row_stride(s.channels)), qkv_stride(row_stride(2 * s.channels)) {
        const int64_t tokens = s.height * s.width, rows = tokens + MR;
        normed = arena.take(rows * stride);
        local = arena.take(rows * stride);
        gates = arena.take(rows * stride);
        qkv = arena.take(rows * qkv_stride);
        std::fill_n(local + tokens * stride, MR * stride, 0.f);  // products read these rows
    }
};

// A thread's rows.
struct GlaBlockScratch {
    int64_t width, low_width, hidden_width;  // strides of rows of C, R and I values
    float *stream, *mixed, *normed;          // [rows][width]
    float* low;                              // [rows][low_width]: what the gates come from
    float* hidden;                           // [rows][hidden_width]
    float* panel;                            // [rows][NR]: a product's outputs on their way
    float* pairs;                            // [rows][...]: what a product takes, where it takes pairs

    static int64_t pairs_of(const vssm_gla_block& s) {
        return PackedMatrix::pairs_stride(std::max({s.channels, s.rank, s.hidden}), s.product_dtype);
    }
    static int64_t each(const vssm_gla_block& s) {
        return 3 * row_stride(s.channels) + row_stride(s.rank) + row_stride(s.hidden) + NR + pairs_of(s);
    }
    static int64_t size(const vssm_gla_block& s, int64_t rows) { return rows * each(s) + 7 * Arena::LINE; }
    GlaBlockScratch(const vssm_gla_block& s, int64_t rows, Arena& arena)
        : width(row_stride(s.channels)), low_width(row_stride(s.rank)), hidden_width(row_stride(s.hidden)) {
        const auto take = [&](int64_t stride) {
            float* part = arena.take(rows * stride);
            std::fill_n(part, rows * stride, 0.f);  // products read rows up to a multiple of HALF_MR
            return part;
        };
        stream = take(width);
        mixed = take(width);
        normed = take(width);
        low = take(low_width);
        hidden = take(hidden_width);
        panel = take(NR);
        pairs = take(pairs_of(s));
    }
};

inline Vec silu(Vec x) { return x * sigmoid(x); }

// The steps for tokens [first, end) of an image, at most the rows of the scratch.
template <class E>
class GlaBlockTile {
  public:
    GlaBlockTile(const vssm_gla_block& s, const GlaBlockWeights& weights, const GlaBlockBuffers& buffers,
                 const GlaBlockScratch& scratch, int64_t image)
        : s_(s), weights_(weights), buffers_(buffers), scratch_(scratch), x_(s.x, image, 0), out_(s.out, image, 0) {}

    void normalise(int64_t first, int64_t end) const {
        for (int64_t t = first; t < end; ++t) {
            load_stream(t, scratch_.stream);
            weights_.norm.forward(scratch_.stream, buffers_.normed + t * buffers_.stride);
        }
    }

    // The local path, and from it what the recurrence takes: queries, keys, values and logarithms of gates.
    void before_recurrence(int64_t first, int64_t end) const {
        for (int64_t t = first; t < end; ++t) convolve(t);
        const auto tokens = static_cast<int>(end - first);
        const float* local = buffers_.local + first * buffers_.stride;
        const auto of = weights_.qkv_proj.operand(local, buffers_.stride, tokens, scratch_.pairs);
        multiply(weights_.qkv_proj, of, buffers_.qkv + first * buffers_.qkv_stride, buffers_.qkv_stride);
        multiply(weights_.gate_down, of, scratch_.low, scratch_.low_width);
        float* gates = buffers_.gates + first * buffers_.stride;
        weights_.gate_up.multiply(scratch_.low, scratch_.low_width, tokens, gates, buffers_.stride, scratch_.pairs);
        const Vec temperature = Vec::set(-1.f / 16);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < s_.channels; c += W) {
                float* at = gates + t * buffers_.stride + c;
                const Vec logit = Vec::load(at) + Vec::load(weights_.gate_bias + c);
                (softplus(Vec::set(0.f) - logit) * temperature).store(at);
            }
    }

    // Both paths mixed, the projection of that added to the stream, and the MLP.
    void after_recurrence(int64_t first, int64_t end) const {
        const auto tokens = static_cast<int>(end - first);
        mix(first, tokens);
        const auto of = weights_.o_proj.operand(scratch_.mixed, scratch_.width, tokens, scratch_.pairs);
        multiply(weights_.o_proj, of, scratch_.normed, scratch_.width);
        for (int t = 0; t < tokens; ++t) {
            float *stream = scratch_.stream + t * scratch_.width, *normed = scratch_.normed + t * scratch_.width;
            load_stream(first + t, stream);
            for (int64_t c = 0; c < s_.channels; c += W) (Vec::load(stream + c) + Vec::load(normed + c)).store(stream + c);
            weights_.norm2.forward(stream, normed);
        }
        project_hidden(tokens);
        project_out(first, tokens);
    }

  private:
    int lanes_at(int64_t c) const { return static_cast<int>(std::min<int64_t>(s_.channels - c, W)); }
    void load_stream(int64_t token, float* to) const {
        for (int64_t c = 0; c < s_.channels; c += W) load(x_.row(token) + c, lanes_at(c)).store(to + c);
    }
    static void multiply(const PackedMatrix& matrix, const PackedMatrix::Operand& of, float* out, int64_t out_stride) {
        for (int64_t panel = 0; panel < matrix.panels(); ++panel)
            matrix.multiply_panel(panel, of, out + panel * NR, out_stride);
    }
    // f(c, from) for the vectors of a panel's outputs: their channel, and where they are among the panel's values.
    template <class F>
    void over_panel(const PackedMatrix& matrix, int64_t panel, int tokens, F&& f) const {
        const int64_t at = panel * NR, last = std::min(at + matrix.panel_width(panel), matrix.outputs);
        for (int t = 0; t < tokens; ++t)
            for (int64_t c = at; c < last; c += W) f(t, c, Vec::load(scratch_.panel + t * NR + c - at));
    }

    // A token's row of the local path: taps on its neighbours in the map, which end at the map's edge.
    void convolve(int64_t token) const {
        const int64_t row = token / s_.width, column = token % s_.width, stride = round_up(s_.channels, W);
        const float *from[GlaBlockWeights::TAPS], *taps[GlaBlockWeights::TAPS];
        int count = 0;
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx) {
                if (row + dy < 0 || row + dy >= s_.height || column + dx < 0 || column + dx >= s_.width) continue;
                from[count] = buffers_.normed + (token + dy * s_.width + dx) * buffers_.stride;
                taps[count++] = weights_.taps + (3 * (dy + 1) + dx + 1) * stride;
            }
        float* to = buffers_.local + token * buffers_.stride;
        for (int64_t c = 0; c < s_.channels; c += W) {
            Vec sum = Vec::load(from[0] + c) * Vec::load(taps[0] + c);
            for (int i = 1; i < count; ++i) sum = fma(Vec::load(from[i] + c), Vec::load(taps[i] + c), sum);
            (s_.conv_act ? silu(sum) : sum).store(to + c);
        }
    }

    void mix(int64_t first, int tokens) const {
        const int64_t values = s_.channels / s_.heads;
        const float *local = buffers_.local + first * buffers_.stride, *yields = buffers_.normed + first * buffers_.stride;
        for (int t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < s_.channels; c += values) {
                weights_.g_norm.forward(yields + t * buffers_.stride + c, scratch_.mixed + t * scratch_.width + c);
                weights_.l_norm.forward(local + t * buffers_.stride + c, scratch_.normed + t * scratch_.width + c);
            }
        const auto of = weights_.g_proj.operand(local, buffers_.stride, tokens, scratch_.pairs);
        for (int64_t panel = 0; panel < weights_.g_proj.panels(); ++panel) {
            weights_.g_proj.multiply_panel(panel, of, scratch_.panel, NR);
            over_panel(weights_.g_proj, panel, tokens, [&](int t, int64_t c, Vec logit) {
                float* mixed = scratch_.mixed + t * scratch_.width + c;
                const Vec attended = Vec::load(mixed), beside = Vec::load(scratch_.normed + t * scratch_.width + c);
                const Vec sum = fma(sigmoid(logit + Vec::load(weights_.g_bias + c)), attended - beside, beside);
                (s_.out_act ? silu(sum) : sum).store(mixed);
            });
        }
    }

    void project_hidden(int tokens) const {
        const auto of = weights_.fc1_gate.operand(scratch_.normed, scratch_.width, tokens, scratch_.pairs);
        for (int64_t panel = 0; panel < weights_.fc1_gate.panels(); ++panel) {
            weights_.fc1_gate.multiply_panel(panel, of, scratch_.hidden + panel * NR, scratch_.hidden_width);
            weights_.fc1_value.multiply_panel(panel, of, scratch_.panel, NR);
            over_panel(weights_.fc1_value, panel, tokens, [&](int t, int64_t h, Vec value) {
                float* at = scratch_.hidden + t * scratch_.hidden_width + h;
                (silu(Vec::load(at)) * value).store(at);
            });
        }
    }

    void project_out(int64_t first, int tokens) const {
        const auto of = weights_.fc2.operand(scratch_.hidden, scratch_.hidden_width, tokens, scratch_.pairs);
        for (int64_t panel = 0; panel < weights_.fc2.panels(); ++panel) {
            weights_.fc2.multiply_panel(panel, of, scratch_.panel, NR);
            over_panel(weights_.fc2, panel, tokens, [&](int t, int64_t c, Vec result) {
                const Vec stream = Vec::load(scratch_.stream + t * scratch_.width + c);
                store(stream + result, out_.row(first + t) + c, lanes_at(c));
            });
        }
    }

    const vssm_gla_block& s_;
    const GlaBlockWeights& weights_;
    const GlaBlockBuffers& buffers_;
    const GlaBlockScratch& scratch_;
    const Rows<E> x_, out_;
};

}  // namespace VISION_SSM_ISA
