// The steps of a Vim block outside the scan, and the memory they work in. Used by kernel_branch.cpp.
#pragma once

#include "norm.h"
#include "ssm_pass.h"

namespace VISION_SSM_ISA {

// A thread takes ROWS tokens to a product at a time; or so many, if that is the whole of its half of an image: then
// every panel of weights is needed once in a block.
constexpr int HALF_ROWS = 128;

// One image's rows between in_proj and out_proj.
struct Rooms {
    // [L][stride], with TOKENS rows more at either end: a product writes whole groups of tokens.
    float *hidden, *sum;
    int64_t stride;

    static int64_t rows(const vssm_ssm& s) { return s.tokens + 2 * TOKENS; }
    static int64_t size(const vssm_ssm& s) { return 2 * (rows(s) * Scratch::stride_of(s.channels) + Arena::LINE); }
    Rooms(const vssm_ssm& s, Arena& arena) : stride(Scratch::stride_of(s.channels)) {
        hidden = arena.take(rows(s) * stride) + TOKENS * stride;
        sum = arena.take(rows(s) * stride) + TOKENS * stride;
    }
};

// What one team (a thread, or all threads of an image) writes z to, and a thread's rows of the stream.
struct Desk {
    float* z;       // [tiles][T][stride of the rooms]
    float* normed;  // [rows][width], also the rows that out_proj yields
    float* pairs;   // [rows][...]: what a product takes, where it takes pairs
    int64_t width;
    int rows;       // most that are taken at a time

    static int64_t width_of(const vssm_branch& s) { return round_up(s.width, W); }
    static int64_t size(const vssm_branch& s, int64_t tiles, int rows) {
        return tiles * T * Scratch::stride_of(s.ssm.channels) + rows * (width_of(s) + pairs_of(s)) + 3 * Arena::LINE;
    }
    static int64_t pairs_of(const vssm_branch& s) {
        return Packed::takes_pairs(s.ssm.product_dtype) ? Packed::pairs_stride(std::max(s.width, s.ssm.channels)) : 0;
    }
    Desk(const vssm_branch& s, int64_t tiles, int rows, Arena& arena) : width(width_of(s)), rows(rows) {
        z = arena.take(tiles * T * Scratch::stride_of(s.ssm.channels));
        normed = arena.take(rows * width);
        pairs = arena.take(rows * pairs_of(s));
        std::fill_n(normed, rows * width, 0.f);
    }
};

// The weights outside the scan.
struct Ends {
    Packed hidden_proj, gate_proj, out_proj;
    Norm norm;
    float* gain;    // [width]: scale * gamma
    bool by_panel;  // the products make their panels themselves

    static int64_t size(const vssm_branch& s, bool by_panel) {
        const int64_t C = s.ssm.channels, D = s.width;
        const int64_t products = by_panel ? Packed::size_with_source() : 2 * Packed::size(C, D) + Packed::size(D, C);
        return products + Norm::size(D) + Desk::width_of(s) + 4 * Arena::LINE;
    }
    Ends(const vssm_branch& s, bool by_panel, Arena& arena) : norm(s.width, arena), by_panel(by_panel) {
        const int64_t C = s.ssm.channels, D = s.width;
        float* panel = by_panel ? arena.take(Packed::size_with_source()) : nullptr;
        const auto room = [&](int64_t outputs, int64_t inputs) {
            return Packed{inputs, outputs, by_panel ? panel : arena.take(Packed::size(outputs, inputs)),
                          Packed::takes_pairs(s.ssm.product_dtype)};
        };
        hidden_proj = room(C, D);
        gate_proj = room(C, D);
        out_proj = room(D, C);
        gain = arena.take(Desk::width_of(s));
    }
    int64_t parts() const {
        return 1 + (by_panel ? 0 : hidden_proj.panels() + gate_proj.panels() + out_proj.panels());
    }

    template <class P>
    void fill(const vssm_branch& s, int64_t part) {
        const P *hidden = static_cast<const P*>(s.in_proj), *gate = hidden + s.ssm.channels * s.width;
        const P* out = static_cast<const P*>(s.out_proj);
        if (part > 0) {
            int64_t panel = part - 1;
            if (panel < hidden_proj.panels()) return hidden_proj.fill(hidden, panel);
            panel -= hidden_proj.panels();
            if (panel < gate_proj.panels()) return gate_proj.fill(gate, panel);
            return out_proj.fill(out, panel - gate_proj.panels());
        }
        if (by_panel) {
            hidden_proj.source = hidden;
            gate_proj.source = gate;
            out_proj.source = out;
            for (Packed* p : {&hidden_proj, &gate_proj, &out_proj}) p->source_dtype = s.ssm.parameter_dtype;
        }
        norm.fill<P>(s.norm, s.eps, s.norm_weight, s.norm_bias);
        const P* gamma = static_cast<const P*>(s.gamma);
        for (int64_t d = 0; d < s.width; d += W) {
            const int lanes = static_cast<int>(std::min<int64_t>(s.width - d, W));
            (Vec::set(s.scale) * (gamma ? load(gamma + d, lanes) : Vec::set(1.f))).store(gain + d);
        }
    }
};

// The steps of one image outside the scan.
class Branch {
  public:
    Branch(const vssm_branch& s, const vssm_tensor& stream, const vssm_tensor& out, const Ends& ends,
           const Rooms& rooms, int64_t image)
        : s_(s), ends_(ends), rooms_(rooms), image_(image), stream_(stream, image, 0), out_(out, image, 0) {}

    // What the pass of direction k leaves for a backward pass.
    void save(int64_t k, DirectionPass<float>& pass) const {
        if (!s_.saved) return;
        const int64_t chunks = (s_.ssm.tokens + T - 1) / T, before = image_ * s_.ssm.directions + k;
        pass.save_to(s_.saved + before * chunks * s_.ssm.states * s_.ssm.channels,
                     s_.projected + before * s_.ssm.tokens * (s_.ssm.rank + 2 * s_.ssm.states));
    }
    // The rows of the image's results before the gate, or null.
    float* sums() const { return s_.sums.data ? Rows<float>(s_.sums, image_, 0).row(0) : nullptr; }
    int64_t sums_stride() const { return s_.sums.token_stride; }

    bool by_panel() const { return ends_.by_panel; }

    // Rows of hidden for the tokens [first, end), at most desk.rows; up to TOKENS of them may be before the first
    // token.
    void enter(int64_t first, int64_t end, const Desk& desk) const {
        for (int64_t t = std::max<int64_t>(first, 0); t < end; ++t)
            normalise(t, desk.normed + (t - first) * desk.width);
        for (int64_t t = end; t < 2 * end - first; ++t) fetch_row(stream_, t);
        ends_.hidden_proj.multiply(desk.normed, desk.width, static_cast<int>(end - first),
                                   rooms_.hidden + first * rooms_.stride, rooms_.stride, desk.pairs);
        for (int64_t t = std::max<int64_t>(first, 0); t < end; ++t) keep(rooms_.hidden + t * rooms_.stride, t, 0);
    }
    // Rows of z for the steps [first, end) of a tile that starts at step `start` of the walk.
    void gate(const vssm_walk& walk, int64_t start, int first, int end, float* z, const Desk& desk) const {
        for (int t = first; t < end; ++t)
            normalise(walk.start + (start + t) * walk.inner_stride, desk.normed + (t - first) * desk.width);
        for (int t = first; t < end; ++t) {
            fetch_row(out_, walk.start + (start + t) * walk.inner_stride);
            fetch_row(stream_, walk.start + (start + t + end - first) * walk.inner_stride);
        }
        ends_.gate_proj.multiply(desk.normed, desk.width, end - first, z + first * rooms_.stride, rooms_.stride,
                                 desk.pairs);
        for (int t = first; t < end; ++t)
            keep(z + t * rooms_.stride, walk.start + (start + t) * walk.inner_stride, s_.ssm.channels);
    }
    // Rows of the output for the tokens [first, end), at most desk.rows. The product reads up to a multiple of FEW: rows
    // past the end may be another thread's in the making, and nothing comes of them.
    void leave(int64_t first, int64_t end, const Desk& desk) const {
        ends_.out_proj.multiply(rooms_.sum + first * rooms_.stride, rooms_.stride, static_cast<int>(end - first),
                                desk.normed, desk.width, desk.pairs);
        for (int64_t t = first; t < end; ++t) {
            const float *added = desk.normed + (t - first) * desk.width, *x = stream_.row(t);
            float* out = out_.row(t);
            for (int64_t d = 0; d < s_.width; d += W) {
                const int lanes = lanes_at(d);
                store(fma(Vec::load(added + d), Vec::load(ends_.gain + d), load(x + d, lanes)), out + d, lanes);
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

    void normalise(int64_t token, float* out) const { ends_.norm.forward(stream_.row(token), out); }

    // One half of what in_proj yields for a token, where a backward pass is to find it.
    void keep(const float* row, int64_t token, int64_t from) const {
        if (s_.xz.data) std::copy_n(row, s_.ssm.channels, Rows<float>(s_.xz, image_, 0).row(token) + from);
    }

    const vssm_branch& s_;
    const Ends& ends_;
    const Rooms& rooms_;
    const int64_t image_;
    const Rows<float> stream_, out_;
};

}  // namespace VISION_SSM_ISA
