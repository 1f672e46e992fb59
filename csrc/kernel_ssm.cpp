// The selective SSM in one pass. Two steps for every tile of tokens: project its rows of u, then advance the states of
// its channels from the projections. With as many images as threads each thread does both steps tile by tile, and the
// rows of u stay in cache between them. With fewer, the threads share an image: all tiles are projected first, each by
// whoever is free, then each thread advances channels of its own along the whole image; only projections are kept.
#include "slice.h"
#include "ssm.h"

#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace VISION_SSM_ISA {

namespace {

constexpr int MOST_TAPS = 8;
constexpr int64_t LINE = 16;  // floats in a cache line

// Tokens whose projections are accumulated together in registers, times VECTORS vectors of outputs.
#if defined(__AVX512F__)
constexpr int TOKENS = 8;
#else
constexpr int TOKENS = 4;
#endif
constexpr int VECTORS = 3;
static_assert(T % TOKENS == 0, "a tile is projected in whole groups of tokens");

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Transpose a matrix [rows][columns] to [columns][rows], rows rounded up to whole vectors with zeros.
template <class P>
void turn(const P* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += W) {
            const int64_t height = std::min<int64_t>(rows - row, W), width = std::min<int64_t>(columns - column, W);
            Vec square[W];
            for (int i = 0; i < W; ++i)
                square[i] = i < height ? load(from + (row + i) * from_stride + column, static_cast<int>(width)) : Vec::set(0.f);
            transpose(square);
            for (int i = 0; i < width; ++i) square[i].store(to + (column + i) * to_stride + row);
        }
}


// Memory that a thread keeps from call to call: fresh pages would cost a small map as much as the scan. It holds
// parameters and a tile, a few MiB at most; what grows with the image is given back.
class Arena {
  public:
    void reserve(int64_t floats) {
        if (floats <= capacity_) return;
        memory_.reset(new float[static_cast<size_t>(floats)]);
        capacity_ = floats;
    }
    void rewind() { used_ = 0; }
    float* take(int64_t floats) {
        float* part = memory_.get() + used_;
        used_ += floats;
        return part;
    }

  private:
    std::unique_ptr<float[]> memory_;
    int64_t capacity_ = 0, used_ = 0;
};

// The parameters of one direction, rearranged so that every loop reads them in order; lanes beyond C hold zeros.
struct Parameters {
    int64_t width;            // of a row of projections: R + 2N rounded up to whole vectors
    float *conv, *conv_bias;  // [taps][blocks * W], [blocks * W]
    float* x_proj;            // [blocks * W][width]
    float* dt_proj;           // [blocks][R][W]
    float *dt_bias, *skip;    // [blocks * W]
    float* rate;              // [blocks][N][W]: A * log2(e)

    static int64_t width_of(const vssm_ssm& s) { return round_up(s.rank + 2 * s.states, W); }
    static int64_t size(const vssm_ssm& s) {
        return round_up(s.channels, W) * (s.taps + 3 + width_of(s) + s.rank + s.states);
    }
    Parameters(const vssm_ssm& s, Arena& arena) : width(width_of(s)) {
        const int64_t channels = round_up(s.channels, W);
        conv = arena.take(s.taps * channels);
        conv_bias = arena.take(channels);
        x_proj = arena.take(channels * width);
        dt_proj = arena.take(s.rank * channels);
        dt_bias = arena.take(channels);
        skip = arena.take(channels);
        rate = arena.take(s.states * channels);
    }

    template <class P>
    void fill(const vssm_ssm& s, int64_t k, int64_t block) {
        const int64_t R = s.rank, N = s.states, C = s.channels, first = block * W;
        const int64_t conv_set = s.convolutions == 1 ? 0 : k, set = s.projections == 1 ? 0 : k;
        const int64_t lanes = std::min<int64_t>(W, C - first);
        const auto from = [](const void* data, int64_t at) { return static_cast<const P*>(data) + at; };
        const int64_t channel = set * C + first;  // of the parameters that directions may share
        turn(from(s.x_proj, set * (R + 2 * N) * C + first), C, R + 2 * N, lanes, x_proj + first * width, width);
        turn(from(s.dt_proj, channel * R), R, lanes, R, dt_proj + block * R * W, W);
        turn(from(s.a_log, (k * C + first) * N), N, lanes, N, rate + block * N * W, W);
        load(from(s.dt_bias, channel), static_cast<int>(lanes)).store(dt_bias + first);
        load(from(s.skip, channel), static_cast<int>(lanes)).store(skip + first);
        if (s.taps) {
            const int64_t at = conv_set * C + first;
            turn(from(s.conv_weight, at * s.taps), s.taps, lanes, s.taps, conv + first, round_up(C, W));
            load(from(s.conv_bias, at), static_cast<int>(lanes)).store(conv_bias + first);
        }
        for (int64_t n = 0; n < N; ++n) {  // A = -exp(A_log)
            float* row = rate + (block * N + n) * W;
            (exp2(Vec::load(row) * Vec::set(LOG2E)) * Vec::set(-LOG2E)).store(row);
        }
    }
};

// One thread's tile and states.
struct Scratch {
    int64_t u_stride;
    float* u;          // [T][u_stride]
    float* projected;  // [T][width]
    float* h;          // [blocks][N][W]

    // An odd number of cache lines between rows spreads a column of the tile over all sets of the cache.
    static int64_t stride_of(const vssm_ssm& s) { return (round_up(s.channels, LINE) / LINE | 1) * LINE; }
    static int64_t size(const vssm_ssm& s) {
        return T * (stride_of(s) + Parameters::width_of(s)) + s.states * round_up(s.channels, W);
    }
    Scratch(const vssm_ssm& s, Arena& arena) : u_stride(stride_of(s)) {
        u = arena.take(T * u_stride);
        projected = arena.take(T * Parameters::width_of(s));
        h = arena.take(s.states * round_up(s.channels, W));
        std::fill_n(u, T * u_stride, 0.f);  // a group of tokens may reach into rows that no tile has filled
    }
};

// Add w [C][width] applied to TOKENS rows of u, for V vectors of outputs.
template <int V>
void project(const float* u, int64_t u_stride, int64_t channels, const float* w, int64_t width, float* out) {
    Vec sum[TOKENS * V];
    unroll<TOKENS * V>([&](auto i) { sum[i] = Vec::set(0.f); });
    for (int64_t c = 0; c < channels; ++c) {
        Vec row[V];
        unroll<V>([&](auto v) { row[v] = Vec::load(w + c * width + v * W); });
        unroll<TOKENS>([&](auto t) {
            const Vec x = Vec::set(u[t * u_stride + c]);
            unroll<V>([&](auto v) { sum[t * V + v] = fma(x, row[v], sum[t * V + v]); });
        });
    }
    unroll<TOKENS>([&](auto t) { unroll<V>([&](auto v) { sum[t * V + v].store(out + t * width + v * W); }); });
}

// One direction of one image.
template <class E>
class DirectionPass {
  public:
    DirectionPass(const vssm_ssm& s, const Parameters& parameters, int64_t image, int64_t k, Scratch& scratch)
        : s_(s),
          p_(parameters),
          walk_(s.walks[k]),
          tiles_(walk_),
          scratch_(scratch),
          x_(s.x, image, 0),
          sink_{Rows<E>(s.y, image, 0), Rows<E>(s.z, image, 0), Rows<float>(s.sum, image, 0),
                s.cover == VSSM_COVER_EACH && k + 1 < s.directions, s.cover == VSSM_COVER_EACH && k > 0,
                s.z.data != nullptr},
          reversed_(s.taps && s.reverse[k]),
          padded_(round_up(s.channels, W)) {}

    // Both steps, tile by tile, for all channels.
    void run() {
        start(0, padded_ / W);
        for (int64_t tile = 0; tile < tiles_.count(); ++tile) {
            enter(tile);
            project_tile(tile, scratch_.projected);
            advance_tile(tile, scratch_.projected, scratch_.u);
        }
    }

    // The first step of one tile: out [steps][width].
    void project_alone(int64_t tile, float* out) {
        places_.set(walk_, tiles_.first(tile), tiles_.steps(tile));
        project_tile(tile, out);
    }

    // The second step of all tiles for some blocks of channels; projected [tiles][T][width].
    void advance_alone(const float* projected, int64_t first_block, int64_t end_block) {
        start(first_block, end_block);
        for (int64_t tile = 0; tile < tiles_.count(); ++tile) {
            enter(tile);
            advance_tile(tile, projected + tile * T * p_.width, nullptr);
        }
    }

  private:
    void start(int64_t first_block, int64_t end_block) {
        first_block_ = first_block;
        end_block_ = end_block;
        if (tiles_.count() > 0) next_.set(walk_, 0, tiles_.steps(0));
        if (sink_.to_sum || sink_.add_sum) ahead_.add(sink_.sum, first_block * W, true);
        if (!sink_.to_sum && !sink_.add_sum) ahead_.add(sink_.y, first_block * W, true);
        if (!sink_.to_sum && sink_.gate) ahead_.add(sink_.z, first_block * W, true);
        ahead_.add(x_, first_block * W, false);
    }

    void enter(int64_t tile) {
        places_ = next_;
        const int next_count = tile + 1 < tiles_.count() ? tiles_.steps(tile + 1) : 0;
        if (next_count) next_.set(walk_, tiles_.first(tile + 1), next_count);
        ahead_.start(next_, next_count, end_block_ - first_block_);
    }

    void project_tile(int64_t tile, float* out) {
        const int count = tiles_.steps(tile);
        const int64_t stride = scratch_.u_stride, width = p_.width;
        for (int t = 0; t < count; ++t) make_row(places_.reads[t], scratch_.u + t * stride);
        for (int t = 0; t < count; t += TOKENS) {  // the last group may end in rows of an earlier tile: no matter
            const float* rows = scratch_.u + t * stride;
            int64_t v = 0;
            for (; v + VECTORS * W <= width; v += VECTORS * W)
                project<VECTORS>(rows, stride, s_.channels, p_.x_proj + v, width, out + t * width + v);
            if (width - v == 2 * W) project<2>(rows, stride, s_.channels, p_.x_proj + v, width, out + t * width + v);
            if (width - v == W) project<1>(rows, stride, s_.channels, p_.x_proj + v, width, out + t * width + v);
        }
    }

    // u of one token, all channels.
    void make_row(int64_t token, float* out) const {
        const Taps taps(*this, token);
        for (int64_t c = 0; c < s_.channels; c += W) taps.u(c).store(out + c);
    }

    // The rows of x that u of one token is made of.
    struct Taps {
        Taps(const DirectionPass& pass, int64_t token) : pass_(pass) {
            const vssm_ssm& s = pass.s_;
            if (!s.taps) rows_[used_++] = pass.x_.row(token);
            for (int64_t tap = 0; tap < s.taps; ++tap) {
                const int64_t past = s.taps - 1 - tap, from = pass.reversed_ ? token + past : token - past;
                if (from < 0 || from >= s.tokens) continue;
                rows_[used_] = pass.x_.row(from);
                weights_[used_++] = pass.p_.conv + tap * pass.padded_;
            }
        }
        Vec u(int64_t channel) const {
            const int lanes = pass_.lanes_at(channel);
            if (!pass_.s_.taps) return load(rows_[0] + channel, lanes);
            Vec a = Vec::load(pass_.p_.conv_bias + channel);
            for (int i = 0; i < used_; ++i)
                a = fma(Vec::load(weights_[i] + channel), load(rows_[i] + channel, lanes), a);
            return a * sigmoid(a);
        }

      private:
        const DirectionPass& pass_;
        const E* rows_[MOST_TAPS];
        const float* weights_[MOST_TAPS];
        int used_ = 0;
    };

    // Advance the states of the pass's blocks; u holds the tile's rows, or is null and u is made again.
    void advance_tile(int64_t tile, const float* projected, const float* u) {
        const int64_t states = s_.states * W;
        if (tiles_.starts_anew(tile))
            std::fill_n(scratch_.h + first_block_ * states, (end_block_ - first_block_) * states, 0.f);
        const int count = tiles_.steps(tile);
        for (int64_t block = first_block_; block < end_block_; ++block)
            for (int at = 0; at < count; at += S)
                advance_slice(block, at, std::min(count - at, S), projected + at * p_.width,
                              u ? u + at * scratch_.u_stride + block * W : nullptr);
    }

    void advance_slice(int64_t block, int at, int count, const float* projected, const float* u) {
        const int64_t channel = block * W, R = s_.rank, N = s_.states;
        const int64_t* writes = places_.writes + at;
        Slice slice;
        widen_steps(projected, p_.dt_proj + block * R * W, Vec::load(p_.dt_bias + channel), slice.delta);
        const Vec skip = Vec::load(p_.skip + channel);
        for (int t = 0; t < count; ++t) {
            const Vec x = u ? Vec::load(u + t * scratch_.u_stride) : Taps(*this, places_.reads[at + t]).u(channel);
            const Vec delta = softplus(Vec::load(slice.delta + t * W));
            delta.store(slice.delta + t * W);
            (delta * x).store(slice.drive + t * W);
            (skip * x).store(slice.y + t * W);
        }
        Near near;
        if (sink_.to_sum || sink_.add_sum) near.add(sink_.sum, channel, writes, count);
        if (!sink_.to_sum && !sink_.add_sum) near.add(sink_.y, channel, writes, count);
        if (!sink_.to_sum && sink_.gate) near.add(sink_.z, channel, writes, count);
        for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t state = (block * N + n) * W;
            advance<size>(slice, count, p_.rate + state, projected + R + n, projected + R + N + n, p_.width,
                          scratch_.h + state, n == 0 ? &ahead_ : nullptr, near);
        });
        emit(slice, writes, count, channel, lanes_at(channel), sink_);
    }

    // The step sizes of a slice before softplus, [S][W], from their low-rank form: a few tokens side by side, so that
    // the sums of different tokens overlap.
    void widen_steps(const float* low_rank, const float* weight, Vec bias, float* out) const {
        for (int t = 0; t < S; t += TOKENS) {
            Vec sum[TOKENS];
            unroll<TOKENS>([&](auto i) { sum[i] = bias; });
            for (int64_t r = 0; r < s_.rank; ++r) {
                const Vec w = Vec::load(weight + r * W);
                unroll<TOKENS>([&](auto i) { sum[i] = fma(Vec::set(low_rank[(t + i) * p_.width + r]), w, sum[i]); });
            }
            unroll<TOKENS>([&](auto i) { sum[i].store(out + (t + i) * W); });
        }
    }

    int lanes_at(int64_t channel) const { return static_cast<int>(std::min<int64_t>(s_.channels - channel, W)); }

    const vssm_ssm& s_;
    const Parameters& p_;
    const vssm_walk& walk_;
    const Tiles tiles_;
    Scratch& scratch_;
    const Rows<E> x_;
    const Sink<E> sink_;
    const bool reversed_;
    const int64_t padded_;
    int64_t first_block_ = 0, end_block_ = 0;
    Places places_ = {}, next_ = {};
    Ahead ahead_;
};

// The projections of one image that its threads share, [K][tiles][T][width].
struct Projected {
    std::vector<int64_t> first_tile;  // [K + 1]
    std::unique_ptr<float[]> rows;

    Projected(const vssm_ssm& s, int64_t width) {
        first_tile.push_back(0);
        for (int64_t k = 0; k < s.directions; ++k) first_tile.push_back(first_tile.back() + Tiles(s.walks[k]).count());
        rows.reset(new float[static_cast<size_t>(first_tile.back() * T * width)]);
    }
};

template <class E>
void forward(const vssm_ssm& s) {
    thread_local Arena arena;
    arena.rewind();
    arena.reserve(s.directions * Parameters::size(s) + s.threads * Scratch::size(s));
    std::vector<Parameters> parameters;
    for (int64_t k = 0; k < s.directions; ++k) parameters.emplace_back(s, arena);
    const int64_t width = parameters[0].width, blocks = (s.channels + W - 1) / W;
    const bool together = s.batch < s.threads;
    std::vector<Scratch> scratch;
    for (int i = 0; i < s.threads; ++i) scratch.emplace_back(s, arena);
    std::vector<Projected> shared;
    if (together) shared.emplace_back(s, width);
    const auto pass = [&](int64_t image, int64_t k, int64_t thread) {
        return DirectionPass<E>(s, parameters[static_cast<size_t>(k)], image, k, scratch[static_cast<size_t>(thread)]);
    };
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
#if defined(_OPENMP)
        const int64_t self = omp_get_thread_num(), team = omp_get_num_threads();
#else
        const int64_t self = 0, team = 1;
#endif
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.directions * blocks; ++i) {
            Parameters& p = parameters[static_cast<size_t>(i / blocks)];
            if (s.parameter_dtype == VSSM_BFLOAT16)
                p.template fill<bfloat16>(s, i / blocks, i % blocks);
            else
                p.template fill<float>(s, i / blocks, i % blocks);
        }
        for (int64_t image = 0; together && image < s.batch; ++image) {
            Projected& projected = shared[0];
            const auto rows = [&](int64_t k) {
                return projected.rows.get() + projected.first_tile[static_cast<size_t>(k)] * T * width;
            };
            for (int64_t k = 0; k < s.directions; ++k) {
                const auto direction = static_cast<size_t>(k);
                const int64_t tiles = projected.first_tile[direction + 1] - projected.first_tile[direction];
#pragma omp for schedule(dynamic, 1) nowait
                for (int64_t tile = 0; tile < tiles; ++tile)
                    pass(image, k, self).project_alone(tile, rows(k) + tile * T * width);
            }
#pragma omp barrier
            for (int64_t k = 0; k < s.directions; ++k)
                pass(image, k, self).advance_alone(rows(k), blocks * self / team, blocks * (self + 1) / team);
#pragma omp barrier  // the projections of the next image take the place of these
        }
        if (!together) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t image = 0; image < s.batch; ++image)
                for (int64_t k = 0; k < s.directions; ++k) pass(image, k, self).run();
        }
    }
}

}  // namespace

void ssm_forward(const vssm_ssm& s) {
    if (s.x.dtype == VSSM_BFLOAT16)
        forward<bfloat16>(s);
    else
        forward<float>(s);
}

}  // namespace VISION_SSM_ISA
