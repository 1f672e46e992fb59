// Forward scan. Time is cut into tiles of VSSM_CHUNK steps and every tile goes through all blocks of channels before
// the next tile starts, so that the rows of a tile are used while they are in cache. One lane is one channel and the
// states of W channels stay in registers along a tile: no horizontal sums, no transposed copies.
#include "tile.h"

#include <type_traits>

namespace VISION_SSM_ISA {

namespace {

struct Tile {
    alignas(64) float delta[T * W];
    alignas(64) float drive[T * W];  // delta * u
    alignas(64) float skip[T * W];   // D * u
    alignas(64) float y[T * W];
    int64_t tokens[T];
};

#if defined(__AVX512F__)
constexpr int STATE_GROUP = 16;
#else
constexpr int STATE_GROUP = 8;
#endif

// Advance G states by `count` steps: h [G][W], decay [G][stride], B and C rows of `states` floats.
template <int G>
void advance(Tile& tile, int count, const float* decay, int64_t stride, int lanes, const float* b, const float* c,
             int64_t states, float* h, bool add) {
    alignas(64) float rate[G * W];
    for (int n = 0; n < G; ++n) load(decay + n * stride, lanes).store(rate + n * W);
    Vec state[G];
    for (int n = 0; n < G; ++n) state[n] = Vec::load(h + n * W);
    for (int t = 0; t < count; ++t) {
        const Vec delta = Vec::load(tile.delta + t * W), drive = Vec::load(tile.drive + t * W);
        const float *bt = b + t * states, *ct = c + t * states;
        Vec y[2] = {add ? Vec::load(tile.y + t * W) : Vec::load(tile.skip + t * W), Vec::set(0.f)};
#pragma GCC unroll 16
        for (int n = 0; n < G; ++n) {
            const Vec keep = exp2(delta * Vec::load(rate + n * W));
            state[n] = fma(keep, state[n], drive * Vec::set(bt[n]));
            y[n & 1] = fma(state[n], Vec::set(ct[n]), y[n & 1]);
        }
        (y[0] + y[1]).store(tile.y + t * W);
    }
    for (int n = 0; n < G; ++n) state[n].store(h + n * W);
}

// Where a block's result goes: to the running sum of the directions or, gated, to the output.
template <class E>
struct Sink {
    Rows<E> y, z;
    Rows<float> sum;
    bool to_sum, add_sum, gate;
};

template <class E>
void emit(const Tile& tile, int count, int64_t channel, int lanes, const Sink<E>& sink) {
    for (int t = 0; t < count; ++t) {
        const int64_t token = tile.tokens[t];
        Vec v = Vec::load(tile.y + t * W);
        if (sink.add_sum) v = v + load(sink.sum.row(token) + channel, lanes);
        if (sink.to_sum) {
            store(v, sink.sum.row(token) + channel, lanes);
            continue;
        }
        if (sink.gate) {
            const Vec z = load(sink.z.row(token) + channel, lanes);
            v = v * z * sigmoid(z);
        }
        store(v, sink.y.row(token) + channel, lanes);
    }
}

template <class E>
void prepare(const vssm_scan& s, Tile& tile, int count, const Rows<E>& u, const Rows<E>& delta, int64_t k,
             int64_t channel, int lanes) {
    const int64_t parameter = k * s.channels + channel;
    const Vec skip = s.skip ? load(s.skip + parameter, lanes) : Vec::set(0.f);
    const Vec bias = s.bias ? load(s.bias + parameter, lanes) : Vec::set(0.f);
    for (int t = 0; t < count; ++t) {
        const E *u_row = u.row(tile.tokens[t]) + channel, *delta_row = delta.row(tile.tokens[t]) + channel;
        // The next block's line of the same row: no hardware prefetcher follows one line per row.
        prefetch(u_row + W);
        prefetch(delta_row + W);
        const Vec x = load(u_row, lanes);
        Vec d = load(delta_row, lanes) + bias;
        if (s.softplus) d = softplus(d);
        d.store(tile.delta + t * W);
        (d * x).store(tile.drive + t * W);
        (skip * x).store(tile.skip + t * W);
    }
}

template <class E>
void prefetch_tile(const Rows<E>& rows, const int64_t* tokens, int count, int64_t channel) {
    for (int t = 0; t < count; ++t) prefetch(rows.row(tokens[t]) + channel);
}

template <class E>
void scan_task(const vssm_scan& s, int64_t image, int64_t group) {
    const Share share(s, group);
    const int64_t N = s.states;
    Tile tile;
    std::vector<float> memory(static_cast<size_t>(share.blocks * N * W + 2 * T * N));
    float *h = memory.data(), *b = h + share.blocks * N * W, *c = b + T * N;
    for (int64_t k = 0; k < s.directions; ++k) {
        const Rows<E> u(s.u, image, k), delta(s.delta, image, k), b_rows(s.b, image, k), c_rows(s.c, image, k);
        const bool last = k + 1 == s.directions;
        const Sink<E> sink{Rows<E>(s.y, image, k), Rows<E>(s.z, image, k), Rows<float>(s.sum, image, k),
                           s.merge && (!last || s.partial), s.merge && (k > 0 || s.partial), s.z.data != nullptr};
        std::fill(h, h + share.blocks * N * W, 0.f);
        for (int64_t first = 0, chunk = 0; first < s.walks[k].length; first += T, ++chunk) {
            const int count = static_cast<int>(s.walks[k].length - first < T ? s.walks[k].length - first : T);
            walk_tokens(s.walks[k], first, count, tile.tokens);
            copy_states(b_rows, tile.tokens, count, N, b);
            copy_states(c_rows, tile.tokens, count, N, c);
            for (int64_t block = 0; block < share.blocks; ++block) {
                const int64_t channel = share.channel(block);
                const int lanes = Share::lanes(s, channel);
                float* state = h + block * N * W;
                if (s.saved) {
                    float* out = s.saved + ((image * s.directions + k) * s.chunks + chunk) * N * s.channels + channel;
                    for (int64_t n = 0; n < N; ++n) store(Vec::load(state + n * W), out + n * s.channels, lanes);
                }
                prepare(s, tile, count, u, delta, k, channel, lanes);
                if (sink.gate && !sink.to_sum) prefetch_tile(sink.z, tile.tokens, count, channel);
                if (sink.add_sum) prefetch_tile(sink.sum, tile.tokens, count, channel);
                for_state_groups<STATE_GROUP>(N, [&](int64_t n, auto size) {
                    advance<size>(tile, count, s.decay + (k * N + n) * s.channels + channel, s.channels, lanes, b + n,
                                  c + n, N, state + n * W, n > 0);
                });
                emit(tile, count, channel, lanes, sink);
            }
        }
    }
}

// Where walks leave tokens out, the gate and the narrowing wait until all directions are summed.
template <class E>
void finish_sum(const vssm_scan& s, int64_t image) {
    const Rows<E> y(s.y, image, 0), z(s.z, image, 0);
    const Rows<float> sum(s.sum, image, 0);
    for (int64_t token = 0; token < s.tokens; ++token)
        for (int64_t channel = 0; channel < s.channels; channel += W) {
            const int lanes = Share::lanes(s, channel);
            Vec v = load(sum.row(token) + channel, lanes);
            if (s.z.data) {
                const Vec gate = load(z.row(token) + channel, lanes);
                v = v * gate * sigmoid(gate);
            }
            store(v, y.row(token) + channel, lanes);
        }
}

template <class E>
void forward(const vssm_scan& s) {
    const int64_t tasks = s.batch * s.groups;
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) scan_task<E>(s, task / s.groups, task % s.groups);
        if (s.merge && s.partial) {
#pragma omp for schedule(static)
            for (int64_t image = 0; image < s.batch; ++image) finish_sum<E>(s, image);
        }
    }
}

}  // namespace

void scan_forward(const vssm_scan& s) {
    if (s.u.dtype == VSSM_BFLOAT16)
        forward<bfloat16>(s);
    else
        forward<float>(s);
}

}  // namespace VISION_SSM_ISA
