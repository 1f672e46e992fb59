// The steps of a Vim block outside the scan, (x, z) = in_proj norm(stream) and stream + scale * gamma * out_proj y,
// with the weights and the memory that they need.
#pragma once

#include "common/arena.h"
#include "common/gemm.h"
#include "common/norm.h"
#include "include/vim_block.h"
#include "ssm/direction.h"

namespace VISION_SSM_ISA {

// A thread takes MC tokens to a product at a time; or so many, if that is the whole of its half of an image: then
// every panel of weights is needed once in a block, and packed on use.
constexpr int HALF_IMAGE_ROWS = 128;

// One image's rows between in_proj and out_proj.
struct ImageBuffers {
    // x and the sum of the directions, [L][stride], with MR rows more at either end: a product writes whole groups of
    // tokens.
    float *hidden, *sum;
    int64_t stride;

    static int64_t rows(const vssm_ssm& s) { return s.tokens + 2 * MR; }
    static int64_t size(const vssm_ssm& s) { return 2 * (rows(s) * row_stride(s.channels) + Arena::LINE); }
    ImageBuffers(const vssm_ssm& s, Arena& arena) : stride(row_stride(s.channels)) {
        hidden = arena.take(rows(s) * stride) + MR * stride;
        sum = arena.take(rows(s) * stride) + MR * stride;
    }
};

// What one team (a thread, or all threads of an image) writes z to, and a thread's own rows of the stream.
struct BlockScratch {
    float* z;       // [tiles][T][stride of ImageBuffers]
    float* normed;  // [rows][width], also the rows that out_proj yields
    float* pairs;   // [rows][...]: what a product takes, where it takes pairs
    int64_t width;
    int rows;       // most that are taken at a time

    static int64_t width_of(const vssm_vim_block& s) { return round_up(s.width, W); }
    static int64_t size(const vssm_vim_block& s, int64_t tiles, int rows) {
        return tiles * T * row_stride(s.ssm.channels) + rows * (width_of(s) + pairs_of(s)) + 3 * Arena::LINE;
    }
    static int64_t pairs_of(const vssm_vim_block& s) {
        return PackedMatrix::pairs_stride(std::max(s.width, s.ssm.channels), s.ssm.product_dtype);
    }
    BlockScratch(const vssm_vim_block& s, int64_t tiles, int rows, Arena& arena) : width(width_of(s)), rows(rows) {
        z = arena.take(tiles * T * row_stride(s.ssm.channels));
        normed = arena.take(rows * width);
        pairs = arena.take(rows * pairs_of(s));
        std::fill_n(normed, rows * width, 0.f);
    }
};

// The weights outside the scan.
struct BlockWeights {
    PackedMatrix hidden_proj, gate_proj, out_proj;
    Norm norm;
    float* gain;    // [width]: scale * gamma
    bool pack_on_use;  // the products pack their panels themselves

    static int64_t size(const vssm_vim_block& s, bool pack_on_use) {
        const int64_t C = s.ssm.channels, D = s.width;
        const int64_t products =
            pack_on_use ? PackedMatrix::size_with_source() : 2 * PackedMatrix::size(C, D) + PackedMatrix::size(D, C);
        return products + Norm::size(D) + BlockScratch::width_of(s) + 4 * Arena::LINE;
    }
    BlockWeights(const vssm_vim_block& s, bool pack_on_use, Arena& arena)
        : norm(s.width, arena),
          pack_on_use(pack_on_use) {
        const int64_t C = s.ssm.channels, D = s.width;
        float* panel = pack_on_use ? arena.take(PackedMatrix::size_with_source()) : nullptr;
        const auto matrix = [&](int64_t outputs, int64_t inputs) {
            return PackedMatrix{inputs, outputs, pack_on_use ? panel : arena.take(PackedMatrix::size(outputs, inputs)),
                                PackedMatrix::takes_pairs(s.ssm.product_dtype)};
        };
        hidden_proj = matrix(C, D);
        gate_proj = matrix(C, D);
        out_proj = matrix(D, C);
        gain = arena.take(BlockScratch::width_of(s));
    }
    int64_t parts() const {
        return 1 + (pack_on_use ? 0 : hidden_proj.panels() + gate_proj.panels() + out_proj.panels());
    }

    template <class P>
    void pack(const vssm_vim_block& s, int64_t part) {
        const P *hidden = static_cast<const P*>(s.in_proj), *gate = hidden + s.ssm.channels * s.width;
        const P* out = static_cast<const P*>(s.out_proj);
        if (part > 0) {
            int64_t panel = part - 1;
            if (panel < hidden_proj.panels()) return hidden_proj.pack(hidden, panel);
            panel -= hidden_proj.panels();
            if (panel < gate_proj.panels()) return gate_proj.pack(gate, panel);
            return out_proj.pack(out, panel - gate_proj.panels());
        }
        if (pack_on_use) {
            hidden_proj.source = hidden;
            gate_proj.source = gate;
            out_proj.source = out;
            for (PackedMatrix* p : {&hidden_proj, &gate_proj, &out_proj}) p->source_dtype = s.ssm.parameter_dtype;
        }
        norm.pack<P>(s.norm, s.eps, s.norm_weight, s.norm_bias);
        const P* gamma = static_cast<const P*>(s.gamma);
        for (int64_t d = 0; d < s.width; d += W) {
            const int lanes = static_cast<int>(std::min<int64_t>(s.width - d, W));
            (Vec::set(s.scale) * (gamma ? load(gamma + d, lanes) : Vec::set(1.f))).store(gain + d);
        }
    }
};

// The steps of one image outside the scan.
class VimBlock {
  public:
    VimBlock(const vssm_vim_block& s, const vssm_tensor& stream, const vssm_tensor& out, const BlockWeights& weights,
           const ImageBuffers& buffers, int64_t image)
        : s_(s), weights_(weights), buffers_(buffers), image_(image), stream_(stream, image, 0), out_(out, image, 0) {}

    // Let the pass of direction k save what a backward pass needs, if there will be one.
    void save_for_backward(int64_t k, DirectionPass<float>& pass) const {
        if (!s_.saved) return;
        const int64_t chunks = ceil_div(s_.ssm.tokens, T), before = image_ * s_.ssm.directions + k;
        pass.save_to(s_.saved + before * chunks * s_.ssm.states * s_.ssm.channels,
                     s_.projected + before * s_.ssm.tokens * (s_.ssm.rank + 2 * s_.ssm.states));
    }
    // The rows of the image's results before the gate, or null.
    float* sums() const { return s_.sums.data ? Rows<float>(s_.sums, image_, 0).row(0) : nullptr; }
    int64_t sums_stride() const { return s_.sums.token_stride; }

    bool pack_on_use() const { return weights_.pack_on_use; }

    // Rows of x, which every direction reads, for the tokens [first, end), at most scratch.rows; up to MR of them may
    // be before the first token.
    void project_hidden(int64_t first, int64_t end, const BlockScratch& scratch) const {
        for (int64_t t = std::max<int64_t>(first, 0); t < end; ++t)
            normalise(t, scratch.normed + (t - first) * scratch.width);
        for (int64_t t = end; t < 2 * end - first; ++t) fetch_row(stream_, t);
        weights_.hidden_proj.multiply(scratch.normed, scratch.width, static_cast<int>(end - first),
                                      buffers_.hidden + first * buffers_.stride, buffers_.stride, scratch.pairs);
        for (int64_t t = std::max<int64_t>(first, 0); t < end; ++t)
            save_row(buffers_.hidden + t * buffers_.stride, t, 0);
    }
    // Rows of z for the steps [first, end) of a tile that starts at step `start` of the walk.
    void project_gate(const vssm_walk& walk, int64_t start, int first, int end, float* z,
                      const BlockScratch& scratch) const {
        for (int t = first; t < end; ++t)
            normalise(walk.start + (start + t) * walk.inner_stride, scratch.normed + (t - first) * scratch.width);
        for (int t = first; t < end; ++t) {
            fetch_row(out_, walk.start + (start + t) * walk.inner_stride);
            fetch_row(stream_, walk.start + (start + t + end - first) * walk.inner_stride);
        }
        weights_.gate_proj.multiply(scratch.normed, scratch.width, end - first, z + first * buffers_.stride,
                                    buffers_.stride, scratch.pairs);
        for (int t = first; t < end; ++t)
            save_row(z + t * buffers_.stride, walk.start + (start + t) * walk.inner_stride, s_.ssm.channels);
    }
    // Rows of the output for the tokens [first, end), at most scratch.rows. The product reads up to a multiple of
    // HALF_MR: rows past the end may be another thread's in the making, and nothing comes of them.
    void project_out(int64_t first, int64_t end, const BlockScratch& scratch) const {
        weights_.out_proj.multiply(buffers_.sum + first * buffers_.stride, buffers_.stride,
                                   static_cast<int>(end - first), scratch.normed, scratch.width, scratch.pairs);
        for (int64_t t = first; t < end; ++t) {
            const float *added = scratch.normed + (t - first) * scratch.width, *x = stream_.row(t);
            float* out = out_.row(t);
            for (int64_t d = 0; d < s_.width; d += W) {
                const int lanes = lanes_at(d);
                store(fma(Vec::load(added + d), Vec::load(weights_.gain + d), load(x + d, lanes)), out + d, lanes);
            }
        }
    }

  private:
    int lanes_at(int64_t d) const { return static_cast<int>(std::min<int64_t>(s_.width - d, W)); }

    // Bring a row that is soon needed, if there is one, into the second-level cache while a product runs.
    void fetch_row(const Rows<float>& rows, int64_t token) const {
        if (token < 0 || token >= s_.ssm.tokens) return;
        for (int64_t d = 0; d < s_.width; d += Arena::LINE) prefetch<2>(rows.row(token) + d);
    }

    void normalise(int64_t token, float* out) const { weights_.norm.forward(stream_.row(token), out); }

    // One half of what in_proj yields for a token, where a backward pass is to find it.
    void save_row(const float* row, int64_t token, int64_t from) const {
        if (s_.xz.data) std::copy_n(row, s_.ssm.channels, Rows<float>(s_.xz, image_, 0).row(token) + from);
    }

    const vssm_vim_block& s_;
    const BlockWeights& weights_;
    const ImageBuffers& buffers_;
    const int64_t image_;
    const Rows<float> stream_, out_;
};

}  // namespace VISION_SSM_ISA
