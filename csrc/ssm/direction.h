// One direction of the selective SSM, a tile of tokens at a time: make the tile's rows of u and project them, then
// advance the states of a share of the channels. Shared by the kernels of the SSM alone and of the Vim block.
#pragma once

#include "scan/advance.h"
#include "ssm/parameters.h"

namespace VISION_SSM_ISA {

constexpr int CONV_TOKENS = 4;  // tokens that are convolved at a time
constexpr int SUBTILE = 16;     // tokens that one thread makes rows of at a time
static_assert(T % SUBTILE == 0 && SUBTILE % MR == 0, "a tile is projected in whole groups of tokens");

// Floats of u between two barriers of the threads that share an image: 400 KiB, well inside a second-level cache.
constexpr int64_t SHARED_FLOATS = 102400;

// One direction of one image.
template <class E>
class DirectionPass {
  public:
    // `walk` may be the rest of direction k's after `before` steps, from the states of which it continues.
    // `gate_slots`: the row of z for each row of the scratch, where z lies there and not at the tokens; else null.
    DirectionPass(const vssm_ssm& s, const PackedParameters& parameters, int64_t k, const vssm_walk& walk,
                  int64_t before, TileScratch& scratch, const Rows<E>& x, const Epilogue<E>& epilogue,
                  const int64_t* gate_slots = nullptr)
        : s_(s),
          p_(parameters),
          walk_(walk),
          before_(before),
          tiles_(walk_),
          scratch_(scratch),
          x_(x),
          epilogue_(epilogue),
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

    // The first step for one subtile of a tile, into the tile's slot of the scratch.
    void project_subtile(int64_t tile, int subtile, int64_t slot) {
        project(tile, subtile * SUBTILE, std::min((subtile + 1) * SUBTILE, tiles_.steps(tile)), slot);
    }
    // The same for the steps [first, end), first a multiple of SUBTILE.
    void project(int64_t tile, int first, int end, int64_t slot) {
        if (first >= end) return;
        TileTokens visited;
        visited.set(walk_, tiles_.first(tile), end);
        float* u = scratch_.u + slot * T * scratch_.u_stride;
        for (int t = first; t < end;) {
            float* rows = u + t * scratch_.u_stride;
            if (end - t >= CONV_TOKENS && make_rows(visited.reads + t, rows)) {
                t += CONV_TOKENS;
            } else {
                make_row(visited.reads[t], rows);
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
                        saved_projected_ + visited.reads[t] * outputs);
    }

    // The channels that the second step is for, from now on; tiles must follow in order. `upcoming` is fetched
    // meanwhile.
    void take_blocks(int64_t first, int64_t end, PrefetchQueue* upcoming = nullptr) {
        first_block_ = first;
        end_block_ = end;
        ahead_.then(upcoming);
        if (tiles() > 0) next_.set(walk_, 0, tiles_.steps(0));
        if (epilogue_.reaches_sum()) ahead_.add(epilogue_.sum, first * W, true);
        if (epilogue_.reaches_output()) ahead_.add(epilogue_.y, first * W, true);
        if (!epilogue_.to_sum && epilogue_.gate && !gate_slots_) ahead_.add(epilogue_.z, first * W, true);
        ahead_.add(x_, first * W, false);
    }

    // The second step for one tile.
    void advance_tile(int64_t tile, int64_t slot) {
        visited_ = next_;
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
    // u of CONV_TOKENS tokens, all channels, if they are neighbours and their taps, of the usual number, all lie inside
    // the sequence: weights and rows are loaded once for all of them.
    bool make_rows(const int64_t* tokens, float* out) const {
        constexpr int TAPS = 4;
        const int64_t step = tokens[1] - tokens[0], low = std::min(tokens[0], tokens[CONV_TOKENS - 1]);
        const int64_t begin = reversed_ ? low : low - (TAPS - 1);
        if (s_.taps != TAPS || (step != 1 && step != -1)) return false;
        if (begin < 0 || begin + CONV_TOKENS + TAPS - 1 > s_.tokens) return false;
        for (int t = 2; t < CONV_TOKENS; ++t)
            if (tokens[t] - tokens[t - 1] != step) return false;
        float* first = step > 0 ? out : out + (CONV_TOKENS - 1) * scratch_.u_stride;  // of the lowest token
        const int64_t stride = step * scratch_.u_stride;
        const float* weights[TAPS];  // in the order of the rows
        for (int tap = 0; tap < TAPS; ++tap) weights[tap] = p_.conv + (reversed_ ? TAPS - 1 - tap : tap) * padded_;
        const auto convolve = [&](int64_t c, int lanes) {
            Vec w[TAPS], sum[CONV_TOKENS];
            unroll<TAPS>([&](auto tap) { w[tap] = Vec::load(weights[tap] + c); });
            unroll<CONV_TOKENS>([&](auto t) { sum[t] = Vec::load(p_.conv_bias + c); });
            unroll<CONV_TOKENS + TAPS - 1>([&](auto row) {
                const Vec x = load(x_.row(begin + row) + c, lanes);
                unroll<CONV_TOKENS>([&](auto t) {
                    if constexpr (row - t >= 0 && row - t < TAPS) sum[t] = fma(w[row - t], x, sum[t]);
                });
            });
            unroll<CONV_TOKENS>([&](auto t) { (sum[t] * sigmoid(sum[t])).store(first + t * stride + c); });
        };
        int64_t c = 0;
        for (; c + W <= s_.channels; c += W) convolve(c, W);
        if (c < s_.channels) convolve(c, lanes_at(c));
        return true;
    }

    // u of one token, all channels.
    void make_row(int64_t token, float* out) const {
        const E* rows[VSSM_MOST_TAPS];
        const float* weights[VSSM_MOST_TAPS];
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
        const int64_t *writes = visited_.writes + at, *gates = gate_slots_ ? gate_slots_ + row : writes;
        const float* projected = scratch_.projected + row * scratch_.width;
        const float* u = scratch_.u + row * scratch_.u_stride + channel;
        Slice slice;
        expand_steps(projected, scratch_.width, R, count, p_.dt_proj + block * R * W, Vec::load(p_.dt_bias + channel),
                     slice.delta);
        const Vec skip = Vec::load(p_.skip + channel);
        for (int t = 0; t < count; ++t) {
            const Vec x = Vec::load(u + t * scratch_.u_stride);
            const Vec delta = softplus(Vec::load(slice.delta + t * W));
            delta.store(slice.delta + t * W);
            (delta * x).store(slice.drive + t * W);
            (skip * x).store(slice.y + t * W);
        }
        LinePrefetch lines;
        if (epilogue_.reaches_sum()) lines.add(epilogue_.sum, channel, writes, count);
        if (epilogue_.reaches_output()) lines.add(epilogue_.y, channel, writes, count);
        if (!epilogue_.to_sum && epilogue_.gate) lines.add(epilogue_.z, channel, gates, count);
        for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t state = (block * N + n) * W;
            advance<size>(slice, count, p_.rate + state, projected + R + n, projected + R + N + n, scratch_.width,
                          scratch_.h + state, n == 0 ? &ahead_ : nullptr, lines);
        });
        apply_epilogue(slice, writes, gates, count, channel, lanes_at(channel), epilogue_);
    }

    int lanes_at(int64_t channel) const { return static_cast<int>(std::min<int64_t>(s_.channels - channel, W)); }

    const vssm_ssm& s_;
    const PackedParameters& p_;
    const vssm_walk walk_;
    const int64_t before_;
    Tiles tiles_;
    TileScratch& scratch_;
    const Rows<E> x_;
    const Epilogue<E> epilogue_;
    const int64_t* gate_slots_;
    const bool reversed_;
    const int64_t padded_;
    float *saved_ = nullptr, *saved_projected_ = nullptr;
    int64_t first_block_ = 0, end_block_ = 0;
    TileTokens visited_ = {}, next_ = {};
    TilePrefetch ahead_;
};

}  // namespace VISION_SSM_ISA
