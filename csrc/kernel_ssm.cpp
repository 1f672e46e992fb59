// The selective SSM in one pass. Two steps for every tile of tokens: make its rows of u and project them, then advance
// the states of its channels from both. With as many images as threads, each thread does both steps for its own image,
// a tile at a time. With fewer, the threads share an image and take a few tiles at a time: the first step is split by
// tokens, the second by channels, and what passes from one to the other stays in cache.
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
constexpr int PIECE = 16;  // tokens that one thread makes rows of at a time
static_assert(T % PIECE == 0 && PIECE % TOKENS == 0, "a tile is projected in whole groups of tokens");

// Floats of u between two meetings of the threads that share an image: 400 KiB, well inside a second-level cache.
constexpr int64_t SHARED_ROWS = 102400;

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

// Rows of u and of projections for some tiles, and the states.
struct Scratch {
    int64_t u_stride, width;
    float* u;          // [tiles][T][u_stride]
    float* projected;  // [tiles][T][width]
    float* h;          // [blocks][N][W]

    // An odd number of cache lines between rows spreads a column of the tile over all sets of the cache.
    static int64_t stride_of(const vssm_ssm& s) { return (round_up(s.channels, LINE) / LINE | 1) * LINE; }
    static int64_t size(const vssm_ssm& s, int64_t tiles) {
        return tiles * T * (stride_of(s) + Parameters::width_of(s)) + s.states * round_up(s.channels, W);
    }
    Scratch(const vssm_ssm& s, int64_t tiles, Arena& arena) : u_stride(stride_of(s)), width(Parameters::width_of(s)) {
        u = arena.take(tiles * T * u_stride);
        projected = arena.take(tiles * T * width);
        h = arena.take(s.states * round_up(s.channels, W));
        std::fill_n(u, tiles * T * u_stride, 0.f);  // a group of tokens may reach into rows that no tile has filled
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

    int64_t tiles() const { return tiles_.count(); }

    // The first step for one piece of a tile, into the tile's slot of the scratch.
    void project_piece(int64_t tile, int piece, int64_t slot) {
        const int first = piece * PIECE, end = std::min(first + PIECE, tiles_.steps(tile));
        if (first >= end) return;
        Places places;
        places.set(walk_, tiles_.first(tile), end);
        float* u = scratch_.u + slot * T * scratch_.u_stride;
        for (int t = first; t < end; ++t) make_row(places.reads[t], u + t * scratch_.u_stride);
        const int64_t stride = scratch_.u_stride, width = p_.width;
        for (int t = first; t < end; t += TOKENS) {  // the last group may end in rows of an earlier tile: no matter
            const float* rows = u + t * stride;
            float* out = scratch_.projected + (slot * T + t) * width;
            int64_t v = 0;
            for (; v + VECTORS * W <= width; v += VECTORS * W)
                project<VECTORS>(rows, stride, s_.channels, p_.x_proj + v, width, out + v);
            if (width - v == 2 * W) project<2>(rows, stride, s_.channels, p_.x_proj + v, width, out + v);
            if (width - v == W) project<1>(rows, stride, s_.channels, p_.x_proj + v, width, out + v);
        }
    }

    // The channels that the second step is for, from now on; tiles must follow in order.
    void take_blocks(int64_t first, int64_t end) {
        first_block_ = first;
        end_block_ = end;
        if (tiles() > 0) next_.set(walk_, 0, tiles_.steps(0));
        if (sink_.to_sum || sink_.add_sum) ahead_.add(sink_.sum, first * W, true);
        if (!sink_.to_sum && !sink_.add_sum) ahead_.add(sink_.y, first * W, true);
        if (!sink_.to_sum && sink_.gate) ahead_.add(sink_.z, first * W, true);
        ahead_.add(x_, first * W, false);
    }

    // The second step for one tile.
    void advance_tile(int64_t tile, int64_t slot) {
        places_ = next_;
        const int next_count = tile + 1 < tiles() ? tiles_.steps(tile + 1) : 0;
        if (next_count) next_.set(walk_, tiles_.first(tile + 1), next_count);
        ahead_.start(next_, next_count, end_block_ - first_block_);
        const int64_t states = s_.states * W;
        if (tiles_.starts_anew(tile))
            std::fill_n(scratch_.h + first_block_ * states, (end_block_ - first_block_) * states, 0.f);
        const int count = tiles_.steps(tile);
        for (int64_t block = first_block_; block < end_block_; ++block)
            for (int at = 0; at < count; at += S) advance_slice(block, at, std::min(count - at, S), slot * T + at);
    }

  private:
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
        for (int64_t c = 0; c < s_.channels; c += W) {
            const int lanes = lanes_at(c);
            if (!s_.taps) {
                load(x_.row(token) + c, lanes).store(out + c);
                continue;
            }
            Vec a = Vec::load(p_.conv_bias + c);
            for (int i = 0; i < used; ++i) a = fma(Vec::load(weights[i] + c), load(rows[i] + c, lanes), a);
            (a * sigmoid(a)).store(out + c);
        }
    }

    // Steps [at, at + count) of the tile, which are rows from `row` on of the scratch.
    void advance_slice(int64_t block, int at, int count, int64_t row) {
        const int64_t channel = block * W, R = s_.rank, N = s_.states;
        const int64_t* writes = places_.writes + at;
        const float *projected = scratch_.projected + row * p_.width, *u = scratch_.u + row * scratch_.u_stride + channel;
        Slice slice;
        widen_steps(projected, p_.dt_proj + block * R * W, Vec::load(p_.dt_bias + channel), slice.delta);
        const Vec skip = Vec::load(p_.skip + channel);
        for (int t = 0; t < count; ++t) {
            const Vec x = Vec::load(u + t * scratch_.u_stride);
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

template <class E>
void forward(const vssm_ssm& s) {
    const bool share = s.batch < s.threads;
    const int scratches = share ? 1 : s.threads;
    const int64_t together = std::max<int64_t>(SHARED_ROWS / (T * Scratch::stride_of(s)), 1);
    const int64_t tiles_each = share ? together : 1;
    thread_local Arena arena;
    arena.rewind();
    arena.reserve(s.directions * Parameters::size(s) + scratches * Scratch::size(s, tiles_each));
    std::vector<Parameters> parameters;
    for (int64_t k = 0; k < s.directions; ++k) parameters.emplace_back(s, arena);
    std::vector<Scratch> scratch;
    for (int i = 0; i < scratches; ++i) scratch.emplace_back(s, tiles_each, arena);
    const int64_t blocks = (s.channels + W - 1) / W;
    const auto pass = [&](int64_t image, int64_t k, size_t with) {
        return DirectionPass<E>(s, parameters[static_cast<size_t>(k)], image, k, scratch[with]);
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
        if (share) {
            for (int64_t i = 0; i < s.batch * s.directions; ++i) {
                DirectionPass<E> mine = pass(i / s.directions, i % s.directions, 0);
                mine.take_blocks(blocks * self / team, blocks * (self + 1) / team);
                for (int64_t first = 0; first < mine.tiles(); first += together) {
                    const int64_t count = std::min(mine.tiles() - first, together);
#pragma omp for schedule(dynamic, 1)
                    for (int64_t piece = 0; piece < count * (T / PIECE); ++piece) {
                        const int64_t slot = piece / (T / PIECE);
                        mine.project_piece(first + slot, static_cast<int>(piece % (T / PIECE)), slot);
                    }
                    for (int64_t slot = 0; slot < count; ++slot) mine.advance_tile(first + slot, slot);
#pragma omp barrier  // before the rows are made anew
                }
            }
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t image = 0; image < s.batch; ++image)
                for (int64_t k = 0; k < s.directions; ++k) {
                    DirectionPass<E> mine = pass(image, k, static_cast<size_t>(self));
                    mine.take_blocks(0, blocks);
                    for (int64_t tile = 0; tile < mine.tiles(); ++tile) {
                        for (int piece = 0; piece < T / PIECE; ++piece) mine.project_piece(tile, piece, 0);
                        mine.advance_tile(tile, 0);
                    }
                }
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
