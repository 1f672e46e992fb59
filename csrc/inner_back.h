// The way back through a Vim block between in_proj and out_proj, a tile of tokens at a time. For every tile, from the
// last to the first: the convolution and the step sizes are made again, the tile is walked backwards, and what reaches
// u, B, C and the step sizes is taken through x_proj, dt_proj and the convolution at once, while it is in the caches.
// Used by kernel_branch_backward.cpp.
#pragma once

#include "reverse.h"
#include "ssm_pass.h"

namespace VISION_SSM_ISA {

// Call f with `value` as a constant, 1 <= value <= Most.
template <int Most, class F>
void with_constant(int64_t value, F&& f) {
    if constexpr (Most > 1)
        if (value < Most) return with_constant<Most - 1>(value, f);
    f(std::integral_constant<int, Most>{});
}

// The parameters of a direction as the way back reads them, besides those of the forward pass.
struct Reversed {
    float* x_proj;   // [pairs of blocks][R + 2N][PAIR * W]
    float* dt_proj;  // [vectors of ranks][C][W]

    static int64_t pairs(const vssm_ssm& s) { return (s.channels + PAIR * W - 1) / (PAIR * W); }
    static int64_t padded(const vssm_ssm& s) { return pairs(s) * PAIR * W; }
    static int64_t rank_vectors(const vssm_ssm& s) { return (s.rank + W - 1) / W; }
    static int64_t size(const vssm_ssm& s) {
        return padded(s) * (s.rank + 2 * s.states + rank_vectors(s) * W) + 2 * Arena::LINE;
    }
    Reversed(const vssm_ssm& s, Arena& arena)
        : x_proj(arena.take(padded(s) * (s.rank + 2 * s.states))),
          dt_proj(arena.take(padded(s) * rank_vectors(s) * W)) {}

    void fill(const vssm_ssm& s, int64_t k, int64_t pair) {
        const int64_t set = s.projections == 1 ? 0 : k, outputs = s.rank + 2 * s.states, width = PAIR * W;
        const int64_t first = pair * width, channels = std::min(s.channels - first, width);
        const float* x = static_cast<const float*>(s.x_proj) + set * outputs * s.channels + first;
        float* to = x_proj + pair * outputs * width;
        std::fill_n(to, outputs * width, 0.f);
        for (int64_t o = 0; o < outputs; ++o) std::copy_n(x + o * s.channels, channels, to + o * width);
        const float* dt = static_cast<const float*>(s.dt_proj) + (set * s.channels + first) * s.rank;
        for (int64_t v = 0; v < rank_vectors(s); ++v) {
            float* rows = dt_proj + (v * padded(s) + first) * W;
            std::fill_n(rows, width * W, 0.f);
            for (int64_t c = 0; c < channels; ++c)
                std::copy_n(dt + c * s.rank + v * W, std::min<int64_t>(s.rank - v * W, W), rows + c * W);
        }
    }
};

// Where one group's gradients of one direction's parameters lie: rows of C floats, added to.
struct Rowset {
    float *a_log, *skip, *dt_bias, *conv, *conv_bias, *x_proj, *dt_proj;

    static int64_t rows(const vssm_ssm& s) { return 3 * s.states + 2 * s.rank + s.taps + 3; }
    Rowset(const vssm_branch_gradients& g, int64_t group, int64_t k) {
        const vssm_ssm& s = g.branch.ssm;
        const int64_t C = s.channels;
        a_log = g.parameters + (group * s.directions + k) * rows(s) * C;
        skip = a_log + s.states * C;
        dt_bias = skip + C;
        conv = dt_bias + C;
        conv_bias = conv + s.taps * C;
        x_proj = conv_bias + C;
        dt_proj = x_proj + (s.rank + 2 * s.states) * C;
    }
};

// What one thread works in: its channels of a few tiles.
struct Bench {
    const int64_t first_block, end_block;
    int64_t stride, width;
    float *u, *slope, *du;   // [tiles][T][stride]: the convolution's result, SiLU's slope there, gradient of u
    float *projected, *sum;  // [tiles][T][width], [T][width]
    float *carried, *da;     // [blocks][N][W]
    float* lanes;            // [groups of states][T][W]
    Stretch* tile;

    static int64_t width_of(const vssm_ssm& s) { return Scratch::width_of(s) + round_up(s.rank, W); }
    static int64_t lanes_size(const vssm_ssm& s) { return (s.states / REVERSE_GROUP + 2) * T * W; }
    static int64_t size(const vssm_ssm& s, int64_t tiles) {
        const int64_t padded = Reversed::padded(s);
        return tiles * T * (3 * Scratch::stride_of(padded) + width_of(s)) + T * width_of(s) + 2 * padded * s.states +
               lanes_size(s) + static_cast<int64_t>(sizeof(Stretch) / sizeof(float)) + 9 * Arena::LINE;
    }
    Bench(const vssm_ssm& s, int64_t tiles, int64_t first_block, int64_t end_block, Arena& arena)
        : first_block(first_block), end_block(end_block) {
        const int64_t blocks = round_up(end_block - first_block, PAIR);
        stride = Scratch::stride_of(blocks * W);
        width = width_of(s);
        u = arena.take(tiles * T * stride);
        slope = arena.take(tiles * T * stride);
        du = arena.take(tiles * T * stride);
        projected = arena.take(tiles * T * width);
        sum = arena.take(T * width);
        carried = arena.take(blocks * s.states * W);
        da = arena.take(blocks * s.states * W);
        lanes = arena.take(lanes_size(s));
        tile = reinterpret_cast<Stretch*>(arena.take(sizeof(Stretch) / sizeof(float)));
        // Groups of tokens reach into rows that no tile has filled.
        std::fill_n(projected, tiles * T * width, 0.f);
        std::fill_n(du, tiles * T * stride, 0.f);
    }
};

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

// What one image has between in_proj and out_proj, [L] rows each.
struct Inner {
    Rows<float> x, z;    // what in_proj yields
    Rows<float> grad;    // of what out_proj takes; overwritten
    Rows<float> dx, dz;
};

// One image by one thread, or by one of the threads that share it.
class InnerBack {
  public:
    InnerBack(const vssm_branch_gradients& g, const std::vector<Parameters>& parameters,
              const std::vector<Reversed>& reversed, Bench& bench, const Inner& rows, int64_t image, int64_t group)
        : g_(g),
          s_(g.branch.ssm),
          parameters_(parameters),
          reversed_(reversed),
          bench_(bench),
          image_(image),
          group_(group),
          rows_(rows),
          sums_(g.branch.sums, image, 0),
          gated_(g.gated, image, 0) {}

    // Back through the gate; dx starts as zero.
    void open() const {
        const Vec scale = Vec::set(g_.branch.scale);
        for (int64_t t = 0; t < s_.tokens; ++t)
            for (int64_t block = bench_.first_block; block < bench_.end_block; ++block) {
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
    void begin(int64_t k) {
        k_ = k;
        std::fill_n(bench_.carried, (bench_.end_block - bench_.first_block) * s_.states * W, 0.f);
        std::fill_n(bench_.da, (bench_.end_block - bench_.first_block) * s_.states * W, 0.f);
        ahead_ = Ahead();
        const int64_t first = bench_.first_block * W;
        ahead_.add(rows_.x, first, false);
        ahead_.add(rows_.grad, first, false);
        ahead_.add(rows_.dx, first, false);
    }
    // The first step for a tile, into its slot: everything but what needs sums over all channels, of which this
    // thread's share goes to `partial` [T][width].
    void walk(int64_t tile, int64_t slot, float* partial) {
        const int count = steps(tile);
        const int64_t N = s_.states, R = s_.rank, outputs = R + 2 * N;
        Places places, next;
        places.set(s_.walks[k_], tile * T, count);
        const int next_count = tile > 0 ? steps(tile - 1) : 0;
        if (next_count) next.set(s_.walks[k_], (tile - 1) * T, next_count);
        ahead_.start(next, next_count, bench_.end_block - bench_.first_block);
        float* projected = bench_.projected + slot * T * bench_.width;
        const float* saved = g_.branch.projected + (image_ * s_.directions + k_) * s_.tokens * outputs;
        for (int t = 0; t < count; ++t) {
            std::copy_n(saved + places.reads[t] * outputs, outputs, projected + t * bench_.width);
            std::fill_n(partial + t * bench_.width, bench_.width, 0.f);
        }
        std::fill_n(bench_.lanes, Bench::lanes_size(s_), 0.f);
        const float* states = g_.branch.saved + ((image_ * s_.directions + k_) * chunks() + tile) * N * s_.channels;
        over_pairs([&](int64_t block, auto blocks) {
            walk_pair<blocks>(block, order(tile, count), places, slot, count, projected, states + block * W, partial);
        });
        const float* sums = bench_.lanes;
        for_state_groups<REVERSE_GROUP>(N, [&](int64_t n, auto size) {
            add_lanes<size>(sums, count, partial + R + n, partial + R + N + n, bench_.width);
            sums += T * W;
        });
    }
    // The second step, from those shares of all threads, `apart` floats from each other.
    void leave(int64_t tile, int64_t slot, const float* partial, int64_t shares, int64_t apart) {
        const int count = steps(tile);
        const float* dprojected = partial;
        if (shares > 1) {
            for (int64_t i = 0; i < count * bench_.width; ++i) {
                float sum = 0.f;
                for (int64_t share = 0; share < shares; ++share) sum += partial[share * apart + i];
                bench_.sum[i] = sum;
            }
            dprojected = bench_.sum;
        }
        over_pairs([&](int64_t block, auto blocks) { leave_pair<blocks>(block, tile, count, slot, dprojected); });
    }
    void end() {
        const Rowset to(g_, group_, k_);
        const Parameters& p = parameters_[static_cast<size_t>(k_)];
        for (int64_t block = bench_.first_block; block < bench_.end_block; ++block)
            for (int64_t n = 0; n < s_.states; ++n) {
                // A = -exp(A_log), of which `rate` is log2(e) times as much.
                const Vec a = Vec::load(p.rate + (block * s_.states + n) * W) * Vec::set(LN2);
                const Vec da = Vec::load(bench_.da + (local(block) * s_.states + n) * W);
                accumulate(to.a_log + n * s_.channels + block * W, a * da, lanes_at(block));
            }
    }
    int64_t chunks() const { return (s_.tokens + T - 1) / T; }

  private:
    int steps(int64_t tile) const { return static_cast<int>(std::min<int64_t>(s_.tokens - tile * T, T)); }
    int lanes_at(int64_t block) const { return static_cast<int>(std::min<int64_t>(s_.channels - block * W, W)); }
    int64_t local(int64_t block) const { return block - bench_.first_block; }
    static void accumulate(float* to, Vec x, int lanes) { store(load(to, lanes) + x, to, lanes); }

    // f(first block, how many) over this thread's blocks, two by two.
    template <class F>
    void over_pairs(F&& f) const {
        int64_t block = bench_.first_block;
        for (; block + PAIR <= bench_.end_block; block += PAIR) f(block, std::integral_constant<int, PAIR>{});
        if (block < bench_.end_block) f(block, std::integral_constant<int, 1>{});
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
        const Parameters& p = parameters_[static_cast<size_t>(k_)];
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
            const int64_t at = (order.first_step + i * order.step) * bench_.stride;
            y.store(u + at);
            fma(y, Vec::set(1.f) - gate, gate).store(slope + at);
        }
    }

    // From the gradient of u to those of x, and of the convolution's parameters, for one block.
    template <int TAPS>
    void convolve_back(int64_t block, const Order& order, int count, const float* du, const float* slope,
                       const Rowset& to) const {
        const Parameters& p = parameters_[static_cast<size_t>(k_)];
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
                const int64_t at = (order.first_step + i * order.step) * bench_.stride;
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
    void walk_pair(int64_t block, const Order& order, const Places& places, int64_t slot, int count,
                   const float* projected, const float* saved, float* partial) {
        const Parameters& p = parameters_[static_cast<size_t>(k_)];
        const Rowset to(g_, group_, k_);
        const int64_t N = s_.states, R = s_.rank, column = local(block) * W, rows = slot * T * bench_.stride + column;
        const bool last = block + P == bench_.end_block;  // then the next tile's first blocks follow
        const float* later = last ? saved - N * s_.channels - local(block) * W : saved + P * W;
        if (!last || order.more)
            for (int64_t n = 0; n < N; ++n)
                for (int i = 0; i < PAIR; ++i) prefetch<2>(later + n * s_.channels + i * W);
        Stretch& tile = *bench_.tile;
        alignas(64) float steepness[PAIR * T * W];  // of softplus
        int lanes[PAIR];
        for (int i = 0; i < P; ++i) {
            lanes[i] = lanes_at(block + i);
            const int64_t c = (block + i) * W;
            float *u = bench_.u + rows + i * W, *slope = bench_.slope + rows + i * W;
            with_constant<MOST_TAPS>(s_.taps, [&](auto taps) { convolve<taps>(block + i, order, count, u, slope); });
            widen_steps(projected, bench_.width, R, count, p.dt_proj + (block + i) * R * W, Vec::load(p.dt_bias + c),
                        tile.delta + i * T * W);
            for (int t = 0; t < count; ++t) {
                const int64_t at = (i * T + t) * W;
                const Vec raw = Vec::load(tile.delta + at), w = fading(raw), delta = softplus(raw, w);
                softplus_slope(raw, w).store(steepness + at);
                delta.store(tile.delta + at);
                (delta * Vec::load(u + t * bench_.stride)).store(tile.drive + at);
                load(rows_.grad.row(places.reads[t]) + c, lanes[i]).store(tile.dy + at);
            }
            std::fill_n(tile.sum_gb + i * T * W, count * W, 0.f);
            std::fill_n(tile.sum_qa + i * T * W, count * W, 0.f);
        }
        float* sums = bench_.lanes;
        for_state_groups<REVERSE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t at = (local(block) * N + n) * W;
            const States states{projected + R + n, projected + R + N + n, bench_.width, p.rate + (block * N + n) * W,
                                bench_.carried + at, bench_.da + at, N * W, sums};
            recompute<P, size, false>(tile, count, states, saved + n * s_.channels, s_.channels, lanes, nullptr,
                                      n == 0 ? &ahead_ : nullptr);
            reverse<P, size>(tile, count, states);
            sums += T * W;
        });
        float* ddelta = tile.sum_qa;  // in its place
        for (int i = 0; i < P; ++i) {
            const int64_t c = (block + i) * W;
            const Vec skip = Vec::load(p.skip + c);
            const float* u = bench_.u + rows + i * W;
            float* du = bench_.du + rows + i * W;
            Vec dskip = Vec::set(0.f), dbias = Vec::set(0.f);
            for (int t = 0; t < count; ++t) {
                const int64_t at = (i * T + t) * W;
                const Vec x = Vec::load(u + t * bench_.stride), gb = Vec::load(tile.sum_gb + at);
                const Vec dy = Vec::load(tile.dy + at);
                const Vec d = fma(Vec::load(tile.sum_qa + at), Vec::set(LN2), x * gb) * Vec::load(steepness + at);
                dskip = fma(dy, x, dskip);
                dbias = dbias + d;
                d.store(ddelta + at);
                fma(Vec::load(tile.delta + at), gb, skip * dy).store(du + t * bench_.stride);
            }
            accumulate(to.skip + c, dskip, lanes[i]);
            accumulate(to.dt_bias + c, dbias, lanes[i]);
        }
        for_state_groups<8>(R, [&](int64_t r, auto size) {
            add_outer<size, P>(projected + r, bench_.width, ddelta, T * W, W, count,
                               to.dt_proj + r * s_.channels + block * W, s_.channels, lanes);
        });
        const float* back = reversed_[static_cast<size_t>(k_)].dt_proj;
        for (int64_t v = 0; v < Reversed::rank_vectors(s_); ++v)
            for (int i = 0; i < P; ++i) {
                const float* w = back + (v * Reversed::padded(s_) + (block + i) * W) * W;
                for (int t = 0; t < count; t += TOKENS)
                    multiply_panel<TOKENS, 1, true>(ddelta + (i * T + t) * W, W, W, w,
                                                    partial + t * bench_.width + v * W, bench_.width);
            }
    }

    template <int P>
    void leave_pair(int64_t block, int64_t tile, int count, int64_t slot, const float* dprojected) const {
        const Rowset to(g_, group_, k_);
        const Order order = this->order(tile, count);
        const int64_t outputs = s_.rank + 2 * s_.states, rows = slot * T * bench_.stride + local(block) * W;
        float* du = bench_.du + rows;
        const float *u = bench_.u + rows, *slope = bench_.slope + rows;
        const float* w = reversed_[static_cast<size_t>(k_)].x_proj + block / PAIR * outputs * PAIR * W;
        int lanes[PAIR];
        for (int i = 0; i < P; ++i) lanes[i] = lanes_at(block + i);
        for (int t = 0; t < count; t += TOKENS)
            multiply_panel<TOKENS, PAIR, true>(dprojected + t * bench_.width, bench_.width, outputs, w,
                                               du + t * bench_.stride, bench_.stride);
        for_state_groups<8>(outputs, [&](int64_t o, auto size) {
            add_outer<size, P>(dprojected + o, bench_.width, u, W, bench_.stride, count,
                               to.x_proj + o * s_.channels + block * W, s_.channels, lanes);
        });
        for (int i = 0; i < P; ++i)
            with_constant<MOST_TAPS>(s_.taps, [&](auto taps) {
                convolve_back<taps>(block + i, order, count, du + i * W, slope + i * W, to);
            });
    }

    const vssm_branch_gradients& g_;
    const vssm_ssm& s_;
    const std::vector<Parameters>& parameters_;
    const std::vector<Reversed>& reversed_;
    Bench& bench_;
    const int64_t image_, group_;
    const Inner rows_;
    const Rows<float> sums_, gated_;
    int64_t k_ = 0;
    Ahead ahead_;
};

}  // namespace VISION_SSM_ISA
