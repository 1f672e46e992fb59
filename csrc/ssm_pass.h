// One direction of the selective SSM, a tile of tokens at a time: make the tile's rows of u and project them, then
// advance the states of a share of the channels. Shared by the kernels of the SSM alone and of the whole branch.
#pragma once

#include "memory.h"
#include "product.h"
#include "slice.h"
#include "ssm.h"

namespace VISION_SSM_ISA {

constexpr int MOST_TAPS = 8;
constexpr int TOGETHER = 4;  // tokens that are convolved at a time
constexpr int PIECE = 16;  // tokens that one thread makes rows of at a time
static_assert(T % PIECE == 0 && PIECE % TOKENS == 0, "a tile is projected in whole groups of tokens");

// Floats of u between two meetings of the threads that share an image: 400 KiB, well inside a second-level cache.
constexpr int64_t SHARED_ROWS = 102400;

// The parameters of one direction, rearranged so that every loop reads them in order; lanes beyond C hold zeros.
struct Parameters {
    Packed x_proj;            // R + 2N outputs
    float *conv, *conv_bias;  // [taps][blocks * W], [blocks * W]
    float* dt_proj;           // [blocks][R][W]
    float *dt_bias, *skip;    // [blocks * W]
    float* rate;              // [blocks][N][W]: A * log2(e)

    static int64_t size(const vssm_ssm& s) {
        return round_up(s.channels, W) * (s.taps + 3 + s.rank + s.states) +
               Packed::size(s.rank + 2 * s.states, s.channels) + 7 * Arena::LINE;
    }
    Parameters(const vssm_ssm& s, Arena& arena) {
        const int64_t channels = round_up(s.channels, W), outputs = s.rank + 2 * s.states;
        conv = arena.take(s.taps * channels);
        conv_bias = arena.take(channels);
        x_proj = {s.channels, outputs, arena.take(Packed::size(outputs, s.channels)),
                  Packed::takes_pairs(s.product_dtype)};
        dt_proj = arena.take(s.rank * channels);
        dt_bias = arena.take(channels);
        skip = arena.take(channels);
        rate = arena.take(s.states * channels);
    }

    // Filling is cut into this many independent parts.
    int64_t parts(const vssm_ssm& s) const { return (s.channels + W - 1) / W + x_proj.panels(); }

    template <class P>
    void fill(const vssm_ssm& s, int64_t k, int64_t part) {
        const int64_t R = s.rank, N = s.states, C = s.channels, blocks = (C + W - 1) / W;
        const int64_t conv_set = s.convolutions == 1 ? 0 : k, set = s.projections == 1 ? 0 : k;
        const auto from = [](const void* data, int64_t at) { return static_cast<const P*>(data) + at; };
        if (part >= blocks) return x_proj.fill(from(s.x_proj, set * (R + 2 * N) * C), part - blocks);
        const int64_t first = part * W, lanes = std::min<int64_t>(W, C - first);
        const int64_t channel = set * C + first;  // of the parameters that directions may share
        turn(from(s.dt_proj, channel * R), R, lanes, R, dt_proj + part * R * W, W);
        turn(from(s.a_log, (k * C + first) * N), N, lanes, N, rate + part * N * W, W);
        load(from(s.dt_bias, channel), static_cast<int>(lanes)).store(dt_bias + first);
        load(from(s.skip, channel), static_cast<int>(lanes)).store(skip + first);
        if (s.taps) {
            const int64_t at = conv_set * C + first;
            turn(from(s.conv_weight, at * s.taps), s.taps, lanes, s.taps, conv + first, round_up(C, W));
            load(from(s.conv_bias, at), static_cast<int>(lanes)).store(conv_bias + first);
        }
        for (int64_t n = 0; n < N; ++n) {  // A = -exp(A_log)
            float* row = rate + (part * N + n) * W;
            (exp2(Vec::load(row) * Vec::set(LOG2E)) * Vec::set(-LOG2E)).store(row);
        }
    }
};

// Rows of u and of projections for some tiles, and the states.
struct Scratch {
    int64_t u_stride, width;
    float* u;          // [tiles][T][u_stride]
    float* projected;  // [tiles][T][width]
    float* h;          // [blocks][N][W]
    float* pairs;      // [tiles][T][pairs_stride]: u as a product takes it, where it takes pairs
    int64_t pairs_stride;

    // An odd number of cache lines between rows spreads a column of the tile over all sets of the cache.
    static int64_t stride_of(int64_t channels) {
        return (round_up(channels, Arena::LINE) / Arena::LINE | 1) * Arena::LINE;
    }
    static int64_t width_of(const vssm_ssm& s) { return round_up(s.rank + 2 * s.states, W); }
    static int64_t size(const vssm_ssm& s, int64_t tiles) {
        return tiles * T * (stride_of(s.channels) + width_of(s) + pairs_stride_of(s)) +
               s.states * round_up(s.channels, W) + 4 * Arena::LINE;
    }
    static int64_t pairs_stride_of(const vssm_ssm& s) {
        return Packed::takes_pairs(s.product_dtype) ? Packed::pairs_stride(s.channels) : 0;
    }
    Scratch(const vssm_ssm& s, int64_t tiles, Arena& arena)
        : u_stride(stride_of(s.channels)), width(width_of(s)), pairs_stride(pairs_stride_of(s)) {
        u = arena.take(tiles * T * u_stride);
        projected = arena.take(tiles * T * width);
        h = arena.take(s.states * round_up(s.channels, W));
        pairs = arena.take(tiles * T * pairs_stride);
        std::fill_n(u, tiles * T * u_stride, 0.f);  // a group of tokens may reach into rows that no tile has filled
    }
};

// The step sizes of a block before softplus, [count][W], from rows of their low-rank form: a few tokens side by side,
// so that the sums of different tokens overlap. Rows are read and written up to whole groups of tokens.
inline void widen_steps(const float* low_rank, int64_t stride, int64_t rank, int count, const float* weight, Vec bias,
                        float* out) {
    for (int t = 0; t < count; t += TOKENS) {
        Vec sum[TOKENS];
        unroll<TOKENS>([&](auto i) { sum[i] = bias; });
        for (int64_t r = 0; r < rank; ++r) {
            const Vec w = Vec::load(weight + r * W);
            unroll<TOKENS>([&](auto i) { sum[i] = fma(Vec::set(low_rank[(t + i) * stride + r]), w, sum[i]); });
        }
        unroll<TOKENS>([&](auto i) { sum[i].store(out + (t + i) * W); });
    }
}

// One direction of one image.
template <class E>
class DirectionPass {
  public:
    // `walk` may be the rest of direction k's after `before` steps, from the states of which it continues.
    // `gate_slots`: the row of z for each row of the scratch, where z lies there and not at the tokens; else null.
    DirectionPass(const vssm_ssm& s, const Parameters& parameters, int64_t k, const vssm_walk& walk, int64_t before,
                  Scratch& scratch, const Rows<E>& x, const Sink<E>& sink, const int64_t* gate_slots = nullptr)
        : s_(s),
          p_(parameters),
          walk_(walk),
          before_(before),
          tiles_(walk_),
          scratch_(scratch),
          x_(x),
          sink_(sink),
          gate_slots_(gate_slots),
          reversed_(s.taps && s.reverse[k]),
          padded_(round_up(s.channels, W)) {}

    // Save for a backward pass the states before every tile of the whole walk, [tiles][N][C], and the rows of
    // projections, [L][R + 2N].
    void save_to(float* states, float* projected) {
        tiles_ = Tiles(walk_, before_);
        saved_ = states;
        saved_projected_ = projected;
    }

    // The rows of z from now on, instead of `gate_slots`.
    void read_gates_at(const int64_t* slots) { gate_slots_ = slots; }

    int64_t tiles() const { return tiles_.count(); }
    int steps(int64_t tile) const { return tiles_.steps(tile); }
    int64_t first(int64_t tile) const { return tiles_.first(tile); }

    // The first step for one piece of a tile, into the tile's slot of the scratch.
    void project_piece(int64_t tile, int piece, int64_t slot) {
        project(tile, piece * PIECE, std::min((piece + 1) * PIECE, tiles_.steps(tile)), slot);
    }
    // The same for the steps [first, end), first a multiple of PIECE.
    void project(int64_t tile, int first, int end, int64_t slot) {
        if (first >= end) return;
        Places places;
        places.set(walk_, tiles_.first(tile), end);
        float* u = scratch_.u + slot * T * scratch_.u_stride;
        for (int t = first; t < end;) {
            float* rows = u + t * scratch_.u_stride;
            if (end - t >= TOGETHER && make_rows(places.reads + t, rows)) {
                t += TOGETHER;
            } else {
                make_row(places.reads[t], rows);
                ++t;
            }
        }
        // The last group may end in rows of an earlier tile: no matter.
        const int64_t row = slot * T + first;
        float* projected = scratch_.projected + row * scratch_.width;
        p_.x_proj.multiply(u + first * scratch_.u_stride, scratch_.u_stride, end - first, projected, scratch_.width,
                           scratch_.pairs + row * scratch_.pairs_stride);
        if (!saved_projected_) return;
        const int64_t outputs = s_.rank + 2 * s_.states;
        for (int t = first; t < end; ++t)
            std::copy_n(projected + (t - first) * scratch_.width, outputs,
                        saved_projected_ + places.reads[t] * outputs);
    }

    // The channels that the second step is for, from now on; tiles must follow in order. `upcoming` is fetched
    // meanwhile.
    void take_blocks(int64_t first, int64_t end, Upcoming* upcoming = nullptr) {
        first_block_ = first;
        end_block_ = end;
        ahead_.then(upcoming);
        if (tiles() > 0) next_.set(walk_, 0, tiles_.steps(0));
        if (sink_.reaches_sum()) ahead_.add(sink_.sum, first * W, true);
        if (sink_.reaches_output()) ahead_.add(sink_.y, first * W, true);
        if (!sink_.to_sum && sink_.gate && !gate_slots_) ahead_.add(sink_.z, first * W, true);
        ahead_.add(x_, first * W, false);
    }

    // The second step for one tile.
    void advance_tile(int64_t tile, int64_t slot) {
        places_ = next_;
        const int next_count = tile + 1 < tiles() ? tiles_.steps(tile + 1) : 0;
        if (next_count) next_.set(walk_, tiles_.first(tile + 1), next_count);
        ahead_.start(next_, next_count, end_block_ - first_block_);
        const int64_t states = s_.states * W;
        if (tiles_.starts_anew(tile) && !(before_ && tile == 0))
            std::fill_n(scratch_.h + first_block_ * states, (end_block_ - first_block_) * states, 0.f);
        const int count = tiles_.steps(tile);
        for (int64_t block = first_block_; block < end_block_; ++block) {
            if (saved_ && (before_ + tiles_.first(tile)) % T == 0) save(tile, block);
            for (int at = 0; at < count; at += S) advance_slice(block, at, std::min(count - at, S), slot * T + at);
        }
    }

  private:
    // u of TOGETHER tokens, all channels, if they are neighbours and their taps, of the usual number, all lie inside
    // the sequence: weights and rows are loaded once for all of them.
    bool make_rows(const int64_t* tokens, float* out) const {
        constexpr int TAPS = 4;
        const int64_t step = tokens[1] - tokens[0], low = std::min(tokens[0], tokens[TOGETHER - 1]);
        const int64_t begin = reversed_ ? low : low - (TAPS - 1);
        if (s_.taps != TAPS || (step != 1 && step != -1)) return false;
        if (begin < 0 || begin + TOGETHER + TAPS - 1 > s_.tokens) return false;
        for (int t = 2; t < TOGETHER; ++t)
            if (tokens[t] - tokens[t - 1] != step) return false;
        float* first = step > 0 ? out : out + (TOGETHER - 1) * scratch_.u_stride;  // of the lowest token
        const int64_t stride = step * scratch_.u_stride;
        const float* weights[TAPS];  // in the order of the rows
        for (int tap = 0; tap < TAPS; ++tap) weights[tap] = p_.conv + (reversed_ ? TAPS - 1 - tap : tap) * padded_;
        const auto convolve = [&](int64_t c, int lanes) {
            Vec w[TAPS], sum[TOGETHER];
            unroll<TAPS>([&](auto tap) { w[tap] = Vec::load(weights[tap] + c); });
            unroll<TOGETHER>([&](auto t) { sum[t] = Vec::load(p_.conv_bias + c); });
            unroll<TOGETHER + TAPS - 1>([&](auto row) {
                const Vec x = load(x_.row(begin + row) + c, lanes);
                unroll<TOGETHER>([&](auto t) {
                    if constexpr (row - t >= 0 && row - t < TAPS) sum[t] = fma(w[row - t], x, sum[t]);
                });
            });
            unroll<TOGETHER>([&](auto t) { (sum[t] * sigmoid(sum[t])).store(first + t * stride + c); });
        };
        int64_t c = 0;
        for (; c + W <= s_.channels; c += W) convolve(c, W);
        if (c < s_.channels) convolve(c, lanes_at(c));
        return true;
    }

    // u of one token, all channels.
    void make_row(int64_t token, float* out) const {
        const E* rows[MOST_TAPS];
        const float* weights[MOST_TAPS];
        int used = 0;
        for (int64_t tap = 0; tap < s_.taps; ++tap) {
            const int64_t past = s_.taps - 1 - tap, from = reversed_ ? token + past : token - past;
            if (from < 0 || from >= s_.tokens) continue;
            rows[used] = x_.row(from);
            weights[used++] = p_.conv + tap * padded_;
        }
        const auto convolve = [&](auto taps) {
            for (int64_t c = 0; c < s_.channels; c += W) {
                const int lanes = lanes_at(c);
                Vec a = Vec::load(p_.conv_bias + c);
                for (int i = 0; i < taps; ++i) a = fma(Vec::load(weights[i] + c), load(rows[i] + c, lanes), a);
                (a * sigmoid(a)).store(out + c);
            }
        };
        if (!s_.taps)
            for (int64_t c = 0; c < s_.channels; c += W) load(x_.row(token) + c, lanes_at(c)).store(out + c);
        else if (used == 4)  // the usual number, as a constant
            convolve(std::integral_constant<int, 4>{});
        else
            convolve(used);
    }

    void save(int64_t tile, int64_t block) const {
        const float* h = scratch_.h + block * s_.states * W;
        const int64_t chunk = (before_ + tiles_.first(tile)) / T;
        float* out = saved_ + chunk * s_.states * s_.channels + block * W;
        for (int64_t n = 0; n < s_.states; ++n)
            store(Vec::load(h + n * W), out + n * s_.channels, lanes_at(block * W));
    }

    // Steps [at, at + count) of the tile, which are rows from `row` on of the scratch.
    void advance_slice(int64_t block, int at, int count, int64_t row) {
        const int64_t channel = block * W, R = s_.rank, N = s_.states;
        const int64_t *writes = places_.writes + at, *gates = gate_slots_ ? gate_slots_ + row : writes;
        const float* projected = scratch_.projected + row * scratch_.width;
        const float* u = scratch_.u + row * scratch_.u_stride + channel;
        Slice slice;
        widen_steps(projected, scratch_.width, R, count, p_.dt_proj + block * R * W, Vec::load(p_.dt_bias + channel),
                    slice.delta);
        const Vec skip = Vec::load(p_.skip + channel);
        for (int t = 0; t < count; ++t) {
            const Vec x = Vec::load(u + t * scratch_.u_stride);
            const Vec delta = softplus(Vec::load(slice.delta + t * W));
            delta.store(slice.delta + t * W);
            (delta * x).store(slice.drive + t * W);
            (skip * x).store(slice.y + t * W);
        }
        Near near;
        if (sink_.reaches_sum()) near.add(sink_.sum, channel, writes, count);
        if (sink_.reaches_output()) near.add(sink_.y, channel, writes, count);
        if (!sink_.to_sum && sink_.gate) near.add(sink_.z, channel, gates, count);
        for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t state = (block * N + n) * W;
            advance<size>(slice, count, p_.rate + state, projected + R + n, projected + R + N + n, scratch_.width,
                          scratch_.h + state, n == 0 ? &ahead_ : nullptr, near);
        });
        emit(slice, writes, gates, count, channel, lanes_at(channel), sink_);
    }

    int lanes_at(int64_t channel) const { return static_cast<int>(std::min<int64_t>(s_.channels - channel, W)); }

    const vssm_ssm& s_;
    const Parameters& p_;
    const vssm_walk walk_;
    const int64_t before_;
    Tiles tiles_;
    Scratch& scratch_;
    const Rows<E> x_;
    const Sink<E> sink_;
    const int64_t* gate_slots_;
    const bool reversed_;
    const int64_t padded_;
    float *saved_ = nullptr, *saved_projected_ = nullptr;
    int64_t first_block_ = 0, end_block_ = 0;
    Places places_ = {}, next_ = {};
    Ahead ahead_;
};

}  // namespace VISION_SSM_ISA
