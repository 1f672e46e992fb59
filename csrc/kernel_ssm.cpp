// The selective SSM in one pass. Every tile is taken in two phases: the rows of u and of their projections are made for
// some tokens, then the states of some channels are advanced. With fewer images than threads the threads share each
// image, splitting the first phase by tokens and the second by channels; the tile's rows are double-buffered, so one
// barrier between the phases is enough.
#include "slice.h"
#include "ssm.h"

#include <iterator>

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

inline float widened(float x) { return x; }
inline float widened(bfloat16 x) { return widen(x); }

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// The parameters of one direction, rearranged so that every loop reads them in order; lanes beyond C hold zeros.
struct Parameters {
    int64_t width;  // of a row of projections: R + 2N rounded up to whole vectors
    std::vector<float> memory;
    float *conv, *conv_bias;  // [taps][blocks * W], [blocks * W]
    float* x_proj;            // [C][width]
    float* dt_proj;           // [blocks][R][W]
    float *dt_bias, *skip;    // [blocks * W]
    float* rate;              // [blocks][N][W]: A * log2(e)

    explicit Parameters(const vssm_ssm& s) : width(round_up(s.rank + 2 * s.states, W)) {
        const int64_t channels = round_up(s.channels, W);
        const int64_t sizes[] = {s.taps * channels, channels, s.channels * width, s.rank * channels,
                                 channels,          channels, s.states * channels};
        float** parts[] = {&conv, &conv_bias, &x_proj, &dt_proj, &dt_bias, &skip, &rate};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size;
        memory.resize(static_cast<size_t>(total));
        float* next = memory.data();
        for (size_t i = 0; i < std::size(sizes); next += sizes[i++]) *parts[i] = next;
    }

    template <class P>
    void fill(const vssm_ssm& s, int64_t k, int64_t block) {
        const int64_t R = s.rank, N = s.states, C = s.channels, first = block * W;
        const int64_t conv_set = s.convolutions == 1 ? 0 : k, set = s.projections == 1 ? 0 : k;
        const int64_t lanes = std::min<int64_t>(W, C - first);
        const auto from = [](const void* data, int64_t at) { return static_cast<const P*>(data) + at; };
        const P *conv_weights = from(s.conv_weight, 0), *outputs = from(s.x_proj, set * (R + 2 * N) * C + first);
        for (int64_t p = 0; p < R + 2 * N; ++p)
            for (int64_t lane = 0; lane < lanes; ++lane)
                x_proj[(first + lane) * width + p] = widened(outputs[p * C + lane]);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t channel = first + lane;
            if (s.taps) conv_bias[channel] = widened(*from(s.conv_bias, conv_set * C + channel));
            for (int64_t j = 0; j < s.taps; ++j)
                conv[j * round_up(C, W) + channel] = widened(conv_weights[(conv_set * C + channel) * s.taps + j]);
            for (int64_t r = 0; r < R; ++r)
                dt_proj[(block * R + r) * W + lane] = widened(*from(s.dt_proj, (set * C + channel) * R + r));
            dt_bias[channel] = widened(*from(s.dt_bias, set * C + channel));
            skip[channel] = widened(*from(s.skip, set * C + channel));
            for (int64_t n = 0; n < N; ++n)
                rate[(block * N + n) * W + lane] = widened(*from(s.a_log, (k * C + channel) * N + n));
        }
        for (int64_t n = 0; n < N; ++n) {  // A = -exp(A_log)
            float* row = rate + (block * N + n) * W;
            (exp2(Vec::load(row) * Vec::set(LOG2E)) * Vec::set(-LOG2E)).store(row);
        }
    }
};

// What the threads of a team share: two tiles' rows, and the states.
struct TileRows {
    int64_t u_stride;
    std::vector<float> memory;
    float *u[2], *projected[2];  // [T][u_stride], [T][width]
    float* h;                    // [blocks][N][W]

    TileRows(const vssm_ssm& s, int64_t width) {
        // An odd number of cache lines between rows spreads a column of the tile over all sets of the cache.
        const int64_t channels = round_up(s.channels, W), lines = round_up(channels, LINE) / LINE;
        u_stride = (lines | 1) * LINE;
        memory.resize(static_cast<size_t>(2 * T * (u_stride + width) + s.states * channels));
        float* next = memory.data();
        for (int i = 0; i < 2; ++i) {
            u[i] = next;
            projected[i] = next + T * u_stride;
            next += T * (u_stride + width);
        }
        h = next;
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

// Which of the team's threads this is.
struct Member {
    int index, team;
};

// One image, by one member of the team that works on it.
template <class E>
class ImageScan {
  public:
    ImageScan(const vssm_ssm& s, const std::vector<Parameters>& parameters, int64_t image, TileRows& rows, Member member)
        : s_(s),
          parameters_(parameters),
          rows_(rows),
          member_(member),
          x_(s.x, image, 0),
          z_(s.z, image, 0),
          y_(s.y, image, 0),
          sum_(s.sum, image, 0),
          width_(parameters[0].width),
          blocks_((s.channels + W - 1) / W),
          first_block_(blocks_ * member.index / member.team),
          end_block_(blocks_ * (member.index + 1) / member.team) {}

    void run() {
        int buffer = 0;
        for (int64_t k = 0; k < s_.directions; ++k) {
            const vssm_walk& walk = s_.walks[k];
            const Tiles tiles(walk);
            const Sink<E> sink{y_, z_, sum_, s_.cover == VSSM_COVER_EACH && k + 1 < s_.directions,
                               s_.cover == VSSM_COVER_EACH && k > 0, s_.z.data != nullptr};
            const int64_t all = tiles.count();
            if (all > 0) next_.set(walk, 0, tiles.steps(0));
            for (int64_t tile = 0; tile < all; ++tile, buffer ^= 1) {
                const int count = tiles.steps(tile), next_count = tile + 1 < all ? tiles.steps(tile + 1) : 0;
                places_ = next_;
                if (next_count) next_.set(walk, tiles.first(tile + 1), next_count);
                make_rows(k, count, rows_.u[buffer], rows_.projected[buffer]);
                if (member_.team > 1) {
#pragma omp barrier
                }
                start_fetching(sink, next_count);
                const int64_t states = s_.states * W;
                if (tiles.starts_anew(tile))
                    std::fill_n(rows_.h + first_block_ * states, (end_block_ - first_block_) * states, 0.f);
                for (int64_t block = first_block_; block < end_block_; ++block)
                    for (int at = 0; at < count; at += S)
                        advance_slice(sink, k, block, at, count, rows_.u[buffer], rows_.projected[buffer]);
            }
        }
    }

  private:
    // The member's share of a tile's tokens, in whole groups.
    std::pair<int, int> tokens_of(int count) const {
        const int groups = (count + TOKENS - 1) / TOKENS;
        return {groups * member_.index / member_.team * TOKENS,
                std::min(groups * (member_.index + 1) / member_.team * TOKENS, count)};
    }

    void make_rows(int64_t k, int count, float* u, float* projected) {
        const Parameters& p = parameters_[static_cast<size_t>(k)];
        const auto [first, end] = tokens_of(count);
        for (int t = first; t < end; ++t) {
            if (s_.taps)
                convolve(k, places_.reads[t], p, u + t * rows_.u_stride);
            else
                for (int64_t c = 0; c < s_.channels; c += W)
                    load(x_.row(places_.reads[t]) + c, lanes_at(c)).store(u + t * rows_.u_stride + c);
        }
        for (int t = first; t < end; t += TOKENS) {  // the last group may end in rows of an earlier tile: no matter
            const float* rows = u + t * rows_.u_stride;
            float* out = projected + t * width_;
            int64_t v = 0;
            for (; v + VECTORS * W <= width_; v += VECTORS * W)
                project<VECTORS>(rows, rows_.u_stride, s_.channels, p.x_proj + v, width_, out + v);
            if (width_ - v == 2 * W) project<2>(rows, rows_.u_stride, s_.channels, p.x_proj + v, width_, out + v);
            if (width_ - v == W) project<1>(rows, rows_.u_stride, s_.channels, p.x_proj + v, width_, out + v);
        }
    }

    void convolve(int64_t k, int64_t token, const Parameters& p, float* out) const {
        const int64_t stride = round_up(s_.channels, W);
        const E* rows[MOST_TAPS];
        const float* weights[MOST_TAPS];
        int used = 0;
        for (int64_t tap = 0; tap < s_.taps; ++tap) {
            const int64_t past = s_.taps - 1 - tap, from = s_.reverse[k] ? token + past : token - past;
            if (from < 0 || from >= s_.tokens) continue;
            rows[used] = x_.row(from);
            weights[used++] = p.conv + tap * stride;
        }
        for (int64_t c = 0; c < s_.channels; c += W) {
            const int lanes = lanes_at(c);
            Vec a = Vec::load(p.conv_bias + c);
            for (int i = 0; i < used; ++i) a = fma(Vec::load(weights[i] + c), load(rows[i] + c, lanes), a);
            (a * sigmoid(a)).store(out + c);
        }
    }

    void advance_slice(const Sink<E>& sink, int64_t k, int64_t block, int at, int tile_count, const float* u,
                       const float* projected) {
        const Parameters& p = parameters_[static_cast<size_t>(k)];
        const int64_t channel = block * W, R = s_.rank, N = s_.states;
        const int lanes = lanes_at(channel), count = std::min(tile_count - at, S);
        const int64_t* writes = places_.writes + at;
        const float *u_rows = u + at * rows_.u_stride + channel, *rows = projected + at * width_;
        Slice slice;
        const Vec skip = Vec::load(p.skip + channel), bias = Vec::load(p.dt_bias + channel);
        const float* dt_proj = p.dt_proj + block * R * W;
        for (int t = 0; t < count; ++t) {
            const Vec x = Vec::load(u_rows + t * rows_.u_stride);
            Vec delta = bias;
            for (int64_t r = 0; r < R; ++r) delta = fma(Vec::set(rows[t * width_ + r]), Vec::load(dt_proj + r * W), delta);
            delta = softplus(delta);
            delta.store(slice.delta + t * W);
            (delta * x).store(slice.drive + t * W);
            (skip * x).store(slice.y + t * W);
        }
        Near near;
        if (sink.to_sum || sink.add_sum) near.add(sink.sum, channel, writes, count);
        if (!sink.to_sum && !sink.add_sum) near.add(sink.y, channel, writes, count);
        if (!sink.to_sum && sink.gate) near.add(sink.z, channel, writes, count);
        for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
            const int64_t state = (block * N + n) * W;
            advance<size>(slice, count, p.rate + state, rows + R + n, rows + R + N + n, width_, rows_.h + state,
                          n == 0 ? &ahead_ : nullptr, near);
        });
        emit(slice, writes, count, channel, lanes, sink);
    }

    // Next tile's tokens of x that this member will need whole, and its own channels of what it will write.
    void start_fetching(const Sink<E>& sink, int next_count) {
        ahead_ = Ahead();
        if (sink.to_sum || sink.add_sum) ahead_.add(sink.sum, first_block_ * W, true);
        if (!sink.to_sum && !sink.add_sum) ahead_.add(sink.y, first_block_ * W, true);
        if (!sink.to_sum && sink.gate) ahead_.add(sink.z, first_block_ * W, true);
        ahead_.add(x_, first_block_ * W, false);
        ahead_.start(next_, next_count, end_block_ - first_block_);
    }

    int lanes_at(int64_t channel) const { return static_cast<int>(std::min<int64_t>(s_.channels - channel, W)); }

    const vssm_ssm& s_;
    const std::vector<Parameters>& parameters_;
    TileRows& rows_;
    const Member member_;
    const Rows<E> x_, z_, y_;
    const Rows<float> sum_;
    const int64_t width_, blocks_, first_block_, end_block_;
    Places places_ = {}, next_ = {};
    Ahead ahead_;
};

template <class E>
void forward(const vssm_ssm& s) {
    std::vector<Parameters> parameters;
    for (int64_t k = 0; k < s.directions; ++k) parameters.emplace_back(s);
    const int64_t width = parameters[0].width, blocks = (s.channels + W - 1) / W;
    const bool together = s.batch < s.threads;
    std::vector<TileRows> rows;
    for (int i = 0; i < (together ? 1 : s.threads); ++i) rows.emplace_back(s, width);
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
#if defined(_OPENMP)
        const Member self{omp_get_thread_num(), omp_get_num_threads()};
#else
        const Member self{0, 1};
#endif
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.directions * blocks; ++i) {
            Parameters& p = parameters[static_cast<size_t>(i / blocks)];
            if (s.parameter_dtype == VSSM_BFLOAT16)
                p.template fill<bfloat16>(s, i / blocks, i % blocks);
            else
                p.template fill<float>(s, i / blocks, i % blocks);
        }
        if (together) {
            for (int64_t image = 0; image < s.batch; ++image) {
                ImageScan<E>(s, parameters, image, rows[0], self).run();
#pragma omp barrier  // the next image starts with the first of the two buffers again
            }
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t image = 0; image < s.batch; ++image)
                ImageScan<E>(s, parameters, image, rows[static_cast<size_t>(self.index)], {0, 1}).run();
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
