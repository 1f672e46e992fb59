// The way back through a Vim block between in_proj and out_proj, a tile of tokens at a time. For every tile, from the
// last to the first: the convolution and the step sizes are made again, the tile is walked backwards, and what reaches
// u, B, C and the step sizes is taken through x_proj, dt_proj and the convolution at once, while it is in the caches.
//
//   dz = dgated * y * silu'(z)     dy = dgated * silu(z)     (du, ddelta, dB, dC) = back through the scan, see reverse.h
//   ddt = dt_proj^T (ddelta * softplus')     du += x_proj^T (ddt, dB, dC)     dx = conv^T (du * silu')
#pragma once

#include "common/activations.h"
#include "vim_block/inner_buffers.h"

namespace VISION_SSM_ISA {

// What one image has between in_proj and out_proj, [L] rows each.
struct InnerRows {
    Rows<float> x, z;    // what in_proj yields
    Rows<float> grad;    // of what out_proj takes; overwritten
    Rows<float> dx, dz;
};

// One image by one thread, or by one of the threads that share it.
class InnerBackward {
  public:
    InnerBackward(const vssm_vim_block_gradients& g, const std::vector<PackedParameters>& parameters,
                  const std::vector<BackwardProjections>& projections, InnerScratch& scratch, const InnerRows& rows,
                  int64_t image, int64_t group)
        : g_(g),
          s_(g.branch.ssm),
          parameters_(parameters),
          projections_(projections),
          scratch_(scratch),
          image_(image),
          group_(group),
          rows_(rows),
          sums_(g.branch.sums, image, 0),
          gated_(g.gated, image, 0) {}

    // From the gradient of the gated result to those of the ungated one and of z; dx starts as zero.
    void back_through_gate() const {
        const Vec scale = Vec::set(g_.branch.scale);
        for (int64_t t = 0; t < s_.tokens; ++t)
            for (int64_t block = scratch_.first_block; block < scratch_.end_block; ++block) {
                const int64_t c = block * W;
                const int lanes = lanes_at(block);
                const Vec z = load(rows_.z.row(t) + c, lanes), gate = sigmoid(z), y = load(sums_.row(t) + c, lanes);
                const Vec grad = load(rows_.grad.row(t) + c, lanes), opened = z * gate;
                store(y * opened * scale, gated_.row(t) + c, lanes);
                store(grad * opened, rows_.grad.row(t) + c, lanes);
                store(grad * y * gate * fma(z, Vec::set(1.f) - gate, Vec::set(1.f)), rows_.dz.row(t) + c, lanes);
                store(Vec::set(0.f), rows_.dx.row(t) + c, lanes);
            }
    }
    void begin_direction(int64_t k) {
        k_ = k;
        std::fill_n(scratch_.carried, (scratch_.end_block - scratch_.first_block) * s_.states * W, 0.f);
        std::fill_n(scratch_.da, (scratch_.end_block - scratch_.first_block) * s_.states * W, 0.f);
        ahead_ = TilePrefetch();
        const int64_t first = scratch_.first_block * W;
        ahead_.add(rows_.x, first, false);
        ahead_.add(rows_.grad, first, false);
        ahead_.add(rows_.dx, first, false);
    }
    // The first step for a tile, into its slot: everything but what needs sums over all channels, of which this
    // thread's share goes to `partial` [T][width].
    void walk_back(int64_t tile, int64_t slot, float* partial) {
        const int count = steps(tile);
        const int64_t N = s_.states, R = s_.rank, outputs = R + 2 * N;
        TileTokens visited, next;
        visited.set(s_.walks[k_], tile * T, count);
        const int next_count = tile > 0 ? steps(tile - 1) : 0;
        if (next_count) next.set(s_.walks[k_], (tile - 1) * T, next_count);
        ahead_.start(next, next_count, scratch_.end_block - scratch_.first_block);
        float* projected = scratch_.projected + slot * T * scratch_.width;
        const float* saved = g_.branch.projected + (image_ * s_.directions + k_) * s_.tokens * outputs;
        for (int t = 0; t < count; ++t) {
            std::copy_n(saved + visited.reads[t] * outputs, outputs, projected + t * scratch_.width);
            std::fill_n(partial + t * scratch_.width, scratch_.width, 0.f);
        }
        std::fill_n(scratch_.lanes, InnerScratch::lanes_size(s_), 0.f);
        const float* states = g_.branch.saved + ((image_ * s_.directions + k_) * chunks() + tile) * N * s_.channels;
        over_pairs([&](int64_t block, auto blocks) {
            walk_pair<blocks>(block, order(tile, count), visited, slot, count, projected, states + block * W, partial);
        });
        const float* sums = scratch_.lanes;
        for_state_groups<REVERSE_GROUP>(N, [&](int64_t n, auto size) {
            add_lanes<size>(sums, count, partial + R + n, partial + R + N + n, scratch_.width);
            sums += T * W;
        });
    }
    // The second step, from those shares of all threads, `apart` floats from each other.
    void back_through_projections(int64_t tile, int64_t slot, const float* partial, int64_t shares, int64_t apart) {
        const int count = steps(tile);
        const float* dprojected = partial;
        if (shares > 1) {
            for (int64_t i = 0; i < count * scratch_.width; ++i) {
                float sum = 0.f;
                for (int64_t share = 0; share < shares; ++share) sum += partial[share * apart + i];
                scratch_.sum[i] = sum;
            }
            dprojected = scratch_.sum;
        }
        over_pairs([&](int64_t block, auto blocks) { projections_pair<blocks>(block, tile, count, slot, dprojected); });
    }
    void end_direction() {
        const ParameterGradients to(g_, group_, k_);
        const PackedParameters& p = parameters_[static_cast<size_t>(k_)];
        for (int64_t block = scratch_.first_block; block < scratch_.end_block; ++block)
            for (int64_t n = 0; n < s_.states; ++n) {
                // A = -exp(A_log), of which `rate` is log2(e) times as much.
                const Vec a = Vec::load(p.rate + (block * s_.states + n) * W) * Vec::set(LN2);
                const Vec da = Vec::load(scratch_.da + (local(block) * s_.states + n) * W);
                accumulate(to.a_log + n * s_.channels + block * W, a * da, lanes_at(block));
            }
    }
    int64_t chunks() const { return (s_.tokens + T - 1) / T; }

  private:
    int steps(int64_t tile) const { return static_cast<int>(std::min<int64_t>(s_.tokens - tile * T, T)); }
    int lanes_at(int64_t block) const { return static_cast<int>(std::min<int64_t>(s_.channels - block * W, W)); }
    int64_t local(int64_t block) const { return block - scratch_.first_block; }
    static void accumulate(float* to, Vec x, int lanes) { store(load(to, lanes) + x, to, lanes); }

    // f(first block, how many) over this thread's blocks, two by two.
    template <class F>
    void over_pairs(F&& f) const {
        int64_t block = scratch_.first_block;
        for (; block + PAIR <= scratch_.end_block; block += PAIR) f(block, std::integral_constant<int, PAIR>{});
        if (block < scratch_.end_block) f(block, std::integral_constant<int, 1>{});
    }

    // How the convolution's order runs through a tile: from one step to the next, and from one token to the next.
    struct Order {
        int first_step, step;
        int64_t first_token, token;
        bool more;  // tiles to come
    };
    Order order(int64_t tile, int count) const {
        const vssm_walk& walk = s_.walks[k_];
        const int64_t stride = walk.inner_stride, onwards = s_.reverse[k_] ? -1 : 1;
        const int first = stride == onwards ? 0 : count - 1;
        return {first, stride == onwards ? 1 : -1, walk.start + (tile * T + first) * stride, onwards, tile > 0};
    }
    Vec x_at(int64_t token, int64_t block) const {
        return token < 0 || token >= s_.tokens ? Vec::set(0.f) : load(rows_.x.row(token) + block * W, lanes_at(block));
    }

    // u and SiLU's slope for one block.
    template <int TAPS>
    void convolve(int64_t block, const Order& order, int count, float* u, float* slope) const {
        const PackedParameters& p = parameters_[static_cast<size_t>(k_)];
        const Vec bias = Vec::load(p.conv_bias + block * W);
        Vec w[TAPS], x[TAPS];
        unroll<TAPS>([&](auto j) {
            w[j] = Vec::load(p.conv + j * round_up(s_.channels, W) + block * W);
            x[j] = x_at(order.first_token - (TAPS - j) * order.token, block);
        });
        for (int i = 0; i < count; ++i) {
            unroll<TAPS - 1>([&](auto j) { x[j] = x[j + 1]; });
            x[TAPS - 1] = x_at(order.first_token + i * order.token, block);
            Vec a = bias;
            unroll<TAPS>([&](auto j) { a = fma(w[j], x[j], a); });
            const Vec gate = sigmoid(a), y = a * gate;
            const int64_t at = (order.first_step + i * order.step) * scratch_.stride;
            y.store(u + at);
            fma(y, Vec::set(1.f) - gate, gate).store(slope + at);
        }
    }

    // From the gradient of u to those of x, and of the convolution's parameters, for one block.
    template <int TAPS>
    void convolve_back(int64_t block, const Order& order, int count, const float* du, const float* slope,
                       const ParameterGradients& to) const {
        const PackedParameters& p = parameters_[static_cast<size_t>(k_)];
        const int lanes = lanes_at(block);
        const int64_t c = block * W;
        Vec w[TAPS], x[TAPS], da[TAPS], dw[TAPS], dbias = Vec::set(0.f);
        unroll<TAPS>([&](auto j) {
            w[j] = Vec::load(p.conv + j * round_up(s_.channels, W) + c);
            x[j] = x_at(order.first_token - (TAPS - j) * order.token, block);
            da[j] = dw[j] = Vec::set(0.f);
        });
        for (int i = 0; i < count + TAPS - 1; ++i) {
            unroll<TAPS - 1>([&](auto j) {
                x[j] = x[j + 1];
                da[j] = da[j + 1];
            });
            da[TAPS - 1] = Vec::set(0.f);
            if (i < count) {
                x[TAPS - 1] = x_at(order.first_token + i * order.token, block);
                const int64_t at = (order.first_step + i * order.step) * scratch_.stride;
                da[TAPS - 1] = Vec::load(du + at) * Vec::load(slope + at);
                dbias = dbias + da[TAPS - 1];
                unroll<TAPS>([&](auto j) { dw[j] = fma(da[TAPS - 1], x[j], dw[j]); });
            }
            const int64_t token = order.first_token + (i - (TAPS - 1)) * order.token;
            if (token < 0 || token >= s_.tokens) continue;
            Vec sum = load(rows_.dx.row(token) + c, lanes);
            unroll<TAPS>([&](auto j) { sum = fma(w[j], da[TAPS - 1 - j], sum); });
            store(sum, rows_.dx.row(token) + c, lanes);
        }
        unroll<TAPS>([&](auto j) { accumulate(to.conv + j * s_.channels + c, dw[j], lanes); });
        accumulate(to.conv_bias + c, dbias, lanes);
    }

    template <int P>
    void walk_pair(int64_t block, const Order& order, const TileTokens& visited, int64_t slot, int count,
                   const float* projected, const float* saved, float* partial) {
        const PackedParameters& p = parameters_[static_cast<size_t>(k_)];
        const ParameterGradients to(g_, group_, k_);
        const int64_t N = s_.states, R = s_.rank, column = local(block) * W, rows = slot * T * scratch_.stride + column;
        const bool last = block + P == scratch_.end_block;  // then the next tile's first blocks follow
        const float* later = last ? saved - N * s_.channels - local(block) * W : saved + P * W;
        if (!last || order.more)
            for (int64_t n = 0; n < N; ++n)
                for (int i = 0; i < PAIR; ++i) prefetch<2>(later + n * s_.channels + i * W);
        ReverseTile& tile = *scratch_.tile;
        alignas(64) float steepness[PAIR * T * W];  // of softplus
        int lanes[PAIR];
        for (int i = 0; i < P; ++i) {
            lanes[i] = lanes_at(block + i);
            const int64_t c = (block + i) * W;
            float *u = scratch_.u + rows + i * W, *slope = scratch_.slope + rows + i * W;
            with_constant<VSSM_MOST_TAPS>(s_.taps,
                                          [&](auto taps) { convolve<taps>(block + i, order, count, u, slope); });
            expand_steps(projected, scratch_.width, R, count, p.dt_proj + (block + i) * R * W, Vec::load(p.dt_bias + c),
                         tile.delta + i * T * W);
            for (int t = 0; t < count; ++t) {
                const int64_t at = (i * T + t) * W;
                const Vec raw = Vec::load(tile.delta + at), w = exp_minus_abs(raw), delta = softplus(raw, w);
                softplus_slope(raw, w).store(steepness + at);
                delta.store(tile.delta + at);
                (delta * Vec::load(u + t * scratch_.stride)).store(tile.drive + at);
                load(rows_.grad.row(visited.reads[t]) + c, lanes[i]).store(tile.dy + at);
            }
            std::fill_n(tile.sum_gb + i * T * W, count * W, 0.f);
            std::fill_n(tile.sum_qa + i * T * W, count * W, 0.f);
        }
        float* sums = scratch_.lanes;
        for_state_groups<REVERSE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t at = (local(block) * N + n) * W;
            const StateGroup states{
                projected + R + n,     projected + R + N + n, scratch_.width, p.rate + (block * N + n) * W,
                scratch_.carried + at, scratch_.da + at,      N * W,          sums};
            recompute<P, size, false>(tile, count, states, saved + n * s_.channels, s_.channels, lanes, nullptr,
                                      n == 0 ? &ahead_ : nullptr);
            reverse<P, size>(tile, count, states);
            sums += T * W;
        });
        float* ddelta = tile.sum_qa;  // in its place
        for (int i = 0; i < P; ++i) {
            const int64_t c = (block + i) * W;
            const Vec skip = Vec::load(p.skip + c);
            const float* u = scratch_.u + rows + i * W;
            float* du = scratch_.du + rows + i * W;
            Vec dskip = Vec::set(0.f), dbias = Vec::set(0.f);
            for (int t = 0; t < count; ++t) {
                const int64_t at = (i * T + t) * W;
                const Vec x = Vec::load(u + t * scratch_.stride), gb = Vec::load(tile.sum_gb + at);
                const Vec dy = Vec::load(tile.dy + at);
                const Vec d = fma(Vec::load(tile.sum_qa + at), Vec::set(LN2), x * gb) * Vec::load(steepness + at);
                dskip = fma(dy, x, dskip);
                dbias = dbias + d;
                d.store(ddelta + at);
                fma(Vec::load(tile.delta + at), gb, skip * dy).store(du + t * scratch_.stride);
            }
            accumulate(to.skip + c, dskip, lanes[i]);
            accumulate(to.dt_bias + c, dbias, lanes[i]);
        }
        for_state_groups<8>(R, [&](int64_t r, auto size) {
            add_outer<size, P>(projected + r, scratch_.width, ddelta, T * W, W, count,
                               to.dt_proj + r * s_.channels + block * W, s_.channels, lanes);
        });
        const float* back = projections_[static_cast<size_t>(k_)].dt_proj;
        for (int64_t v = 0; v < BackwardProjections::rank_vectors(s_); ++v)
            for (int i = 0; i < P; ++i) {
                const float* w = back + (v * BackwardProjections::padded(s_) + (block + i) * W) * W;
                for (int t = 0; t < count; t += MR)
                    micro_kernel<MR, 1, true>(ddelta + (i * T + t) * W, W, W, w,
                                                    partial + t * scratch_.width + v * W, scratch_.width);
            }
    }

    template <int P>
    void projections_pair(int64_t block, int64_t tile, int count, int64_t slot, const float* dprojected) const {
        const ParameterGradients to(g_, group_, k_);
        const Order order = this->order(tile, count);
        const int64_t outputs = s_.rank + 2 * s_.states, rows = slot * T * scratch_.stride + local(block) * W;
        float* du = scratch_.du + rows;
        const float *u = scratch_.u + rows, *slope = scratch_.slope + rows;
        const float* w = projections_[static_cast<size_t>(k_)].x_proj + block / PAIR * outputs * PAIR * W;
        int lanes[PAIR];
        for (int i = 0; i < P; ++i) lanes[i] = lanes_at(block + i);
        for (int t = 0; t < count; t += MR)
            micro_kernel<MR, PAIR, true>(dprojected + t * scratch_.width, scratch_.width, outputs, w,
                                         du + t * scratch_.stride, scratch_.stride);
        for_state_groups<8>(outputs, [&](int64_t o, auto size) {
            add_outer<size, P>(dprojected + o, scratch_.width, u, W, scratch_.stride, count,
                               to.x_proj + o * s_.channels + block * W, s_.channels, lanes);
        });
        for (int i = 0; i < P; ++i)
            with_constant<VSSM_MOST_TAPS>(s_.taps, [&](auto taps) {
                convolve_back<taps>(block + i, order, count, du + i * W, slope + i * W, to);
            });
    }

    const vssm_vim_block_gradients& g_;
    const vssm_ssm& s_;
    const std::vector<PackedParameters>& parameters_;
    const std::vector<BackwardProjections>& projections_;
    InnerScratch& scratch_;
    const int64_t image_, group_;
    const InnerRows rows_;
    const Rows<float> sums_, gated_;
    int64_t k_ = 0;
    TilePrefetch ahead_;
};

}  // namespace VISION_SSM_ISA
