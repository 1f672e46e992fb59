// Backward scan. The tiles of a direction are taken from the last to the first; each is recomputed from the state
// that the forward pass saved before it, then walked backwards:
//
//   g[t] = C[t] dy[t] + keep[t+1] g[t+1]      keep[t] = exp(delta[t] A)      q[t] = g[t] keep[t] h[t-1]
//   dC[t] = sum_c dy h      dB[t] = sum_c g delta u      dA = sum_t q delta
//   ddelta = sum_n q A + u sum_n g B      du = delta sum_n g B + D dy
//
// Every sum runs in an order that depends only on shapes and on `groups`, so equal calls give equal bits.
#include "common/threads.h"
#include "scan/channels.h"
#include "scan/reverse.h"

#include <vector>

namespace VISION_SSM_ISA {

namespace {

// What PAIR blocks need beside the loops over states, [PAIR][T][W].
struct TileBuffers {
    ReverseTile stretch;
    alignas(64) float u[PAIR * T * W];
    alignas(64) float slope[PAIR * T * W];  // d softplus
    alignas(64) float y[PAIR * T * W];      // ungated readout, for the gate's gradient
    TileTokens visited;
};

// Scratch memory of one task beside the tile.
struct TaskScratch {
    std::vector<float> memory;
    float *carried, *da, *rate;  // [blocks][N][W]
    float *b, *c;                // [T][N]
    float *db, *dc;              // [T][N]
    float* lanes;                // [groups of states][T][W]
    int64_t groups;

    TaskScratch(int64_t blocks, int64_t states) : groups(states / REVERSE_GROUP + 2) {
        memory.resize(static_cast<size_t>(3 * blocks * states * W + 4 * T * states + groups * T * W));
        carried = memory.data();
        da = carried + blocks * states * W;
        rate = da + blocks * states * W;
        b = rate + blocks * states * W;
        c = b + T * states;
        db = c + T * states;
        dc = db + T * states;
        lanes = dc + T * states;
    }
};

// One direction of one image, typed.
template <class E>
struct Direction {
    Rows<E> u, delta, b, c, z, grad;
    int64_t k;
    Vec skip[PAIR];  // of the current blocks

    Direction(const vssm_scan& s, int64_t image, int64_t direction)
        : u(s.u, image, direction),
          delta(s.delta, image, direction),
          b(s.b, image, direction),
          c(s.c, image, direction),
          z(s.z, image, direction),
          grad(s.grad, image, direction),
          k(direction) {}
};

template <class E>
void prepare(const vssm_scan& s, TileBuffers& tile, int count, Direction<E>& from, int which, int64_t channel,
             int lanes) {
    const int64_t parameter = from.k * s.channels + channel;
    const Vec skip = s.skip ? load(s.skip + parameter, lanes) : Vec::set(0.f);
    const Vec bias = s.bias ? load(s.bias + parameter, lanes) : Vec::set(0.f);
    from.skip[which] = skip;
    ReverseTile& to = tile.stretch;
    for (int t = 0; t < count; ++t) {
        const int64_t read = tile.visited.reads[t], write = tile.visited.writes[t], at = (which * T + t) * W;
        const Vec u = load(from.u.row(read) + channel, lanes);
        const Vec raw = load(from.delta.row(read) + channel, lanes) + bias;
        Vec dy = load(from.grad.row(write) + channel, lanes), delta = raw, slope = Vec::set(1.f);
        if (s.softplus) {
            const Vec w = exp_minus_abs(raw);
            delta = softplus(raw, w);
            slope = softplus_slope(raw, w);
        }
        if (s.z.data) {
            const Vec z = load(from.z.row(write) + channel, lanes);
            dy = dy * z * sigmoid(z);
            (skip * u).store(tile.y + at);
        }
        u.store(tile.u + at);
        slope.store(tile.slope + at);
        delta.store(to.delta + at);
        (delta * u).store(to.drive + at);
        dy.store(to.dy + at);
    }
    std::fill_n(to.sum_gb + which * T * W, count * W, 0.f);
    std::fill_n(to.sum_qa + which * T * W, count * W, 0.f);
}

// All rows that a tile reads or writes: loads wait for memory, and so do stores, which retire in order.
template <class E>
TilePrefetch rows_ahead(const vssm_scan& s, const Direction<E>& from, int64_t image, int64_t channel) {
    TilePrefetch ahead;
    ahead.add(from.u, channel, false);
    ahead.add(from.delta, channel, false);
    ahead.add(from.grad, channel, true);
    if (s.z.data) ahead.add(from.z, channel, true);
    const auto add = [&](const vssm_tensor& to, bool written) {
        if (to.dtype == VSSM_FLOAT32)
            ahead.add(Rows<float>(to, image, from.k), channel, written);
        else
            ahead.add(Rows<E>(to, image, from.k), channel, written);
    };
    add(s.du, false);
    add(s.ddelta, false);
    if (s.z.data) add(s.dz, true);
    return ahead;
}

// Fetches the lines that a block is about to write, a few rows ahead, into the first-level cache: stores retire in
// order, and rows a power of two apart displace each other there.
constexpr int PREFETCH_ROWS = 8;

template <class E>
class GradientPrefetch {
  public:
    GradientPrefetch(const vssm_scan& s, const Direction<E>& from, int64_t image, int64_t channel)
        : gated_(s.z.data != nullptr) {
        set(du_, s.du, image, from.k, channel);
        set(ddelta_, s.ddelta, image, from.k, channel);
        if (!gated_) return;
        set(dz_, s.dz, image, from.k, channel);
        grad_ = {reinterpret_cast<const char*>(from.grad.base + channel), from.grad.stride * int64_t{sizeof(E)}};
        z_ = {reinterpret_cast<const char*>(from.z.base + channel), from.z.stride * int64_t{sizeof(E)}};
    }
    void fetch(const TileTokens& visited, int t) const {
        const int64_t read = visited.reads[t], write = visited.writes[t];
        prefetch<1>(du_.base + read * du_.stride);
        prefetch<1>(ddelta_.base + read * ddelta_.stride);
        if (!gated_) return;
        prefetch<1>(dz_.base + write * dz_.stride);
        prefetch<1>(grad_.base + write * grad_.stride);
        prefetch<1>(z_.base + write * z_.stride);
    }

  private:
    struct Column {
        const char* base;
        int64_t stride;
    };
    static void set(Column& column, const vssm_tensor& x, int64_t image, int64_t k, int64_t channel) {
        if (x.dtype == VSSM_FLOAT32) {
            const Rows<float> rows(x, image, k);
            column = {reinterpret_cast<const char*>(rows.base + channel), rows.stride * 4};
        } else {
            const Rows<E> rows(x, image, k);
            column = {reinterpret_cast<const char*>(rows.base + channel), rows.stride * int64_t{sizeof(E)}};
        }
    }
    bool gated_;
    Column du_, ddelta_, dz_, grad_, z_;
};

// Write x, or add it, to a gradient that is float32 or the input's type.
template <class E>
VSSM_INLINE void store_or_add(const vssm_tensor& to, int64_t image, int64_t k, int64_t token, int64_t channel,
                              int lanes, bool add, Vec x) {
    if (to.dtype == VSSM_FLOAT32) {
        float* p = Rows<float>(to, image, k).row(token) + channel;
        store(add ? x + load(p, lanes) : x, p, lanes);
    } else {
        E* p = Rows<E>(to, image, k).row(token) + channel;
        store(add ? x + load(p, lanes) : x, p, lanes);
    }
}

template <class E>
void store_gradients(const vssm_scan& s, const TileBuffers& tile, int count, const Direction<E>& from, int64_t image,
                     int which, int64_t channel, int lanes) {
    const int64_t k = from.k;
    const ReverseTile& of = tile.stretch;
    const Vec skip = from.skip[which];
    const auto adds = [&](const vssm_tensor& to) { return to.direction_stride == 0 && adds_to_shared(s, k); };
    const bool add_u = adds(s.du), add_delta = adds(s.ddelta), add_z = adds_to_shared(s, k);
    const GradientPrefetch<E> rows(s, from, image, channel);
    Vec dskip = Vec::set(0.f), dbias = Vec::set(0.f);
    for (int t = 0; t < count; ++t) {
        if (t + PREFETCH_ROWS < count) rows.fetch(tile.visited, t + PREFETCH_ROWS);
        const int64_t token = tile.visited.reads[t];
        const int64_t at = (which * T + t) * W;
        const Vec u = Vec::load(tile.u + at), gb = Vec::load(of.sum_gb + at), dy = Vec::load(of.dy + at);
        const Vec ddelta = fma(Vec::load(of.sum_qa + at), Vec::set(LN2), u * gb) * Vec::load(tile.slope + at);
        dskip = fma(dy, u, dskip);
        dbias = dbias + ddelta;
        store_or_add<E>(s.ddelta, image, k, token, channel, lanes, add_delta, ddelta);
        store_or_add<E>(s.du, image, k, token, channel, lanes, add_u, fma(Vec::load(of.delta + at), gb, skip * dy));
        if (s.z.data) {
            const int64_t write = tile.visited.writes[t];
            const Vec z = load(from.z.row(write) + channel, lanes), gate = sigmoid(z);
            const Vec slope = gate * fma(z, Vec::set(1.f) - gate, Vec::set(1.f));
            const Vec dz = load(from.grad.row(write) + channel, lanes) * Vec::load(tile.y + at) * slope;
            store_or_add<E>(s.dz, image, k, write, channel, lanes, add_z, dz);
        }
    }
    const int64_t parameter = (image * s.directions + k) * s.channels + channel;
    const auto accumulate = [lanes](float* p, Vec x) { store(load(p, lanes) + x, p, lanes); };
    accumulate(s.dskip + parameter, dskip);
    accumulate(s.dbias + parameter, dbias);
}

// Take a tile's sums over channels to the gradients of B and C at the tile's tokens.
void store_state_gradients(const vssm_scan& s, TaskScratch& scratch, const TileBuffers& tile, int count, int64_t image,
                           int64_t group, int64_t k) {
    std::fill_n(scratch.db, 2 * T * s.states, 0.f);  // and dc behind it
    int64_t at = 0;
    for_state_groups<REVERSE_GROUP>(s.states, [&](int64_t n, auto size) {
        add_lanes<size>(scratch.lanes + at, count, scratch.db + n, scratch.dc + n, s.states);
        at += T * W;
    });
    const auto write = [&](float* to, int64_t directions, const float* sums) {
        const bool add = directions == 1 && adds_to_shared(s, k);
        float* base = to + ((group * s.batch + image) * directions + (directions == 1 ? 0 : k)) * s.tokens * s.states;
        for (int t = 0; t < count; ++t) {
            float* row = base + tile.visited.reads[t] * s.states;
            for (int64_t n = 0; n < s.states; ++n) row[n] = sums[t * s.states + n] + (add ? row[n] : 0.f);
        }
    };
    write(s.db, s.db_directions, scratch.db);
    write(s.dc, s.dc_directions, scratch.dc);
}

// P blocks of a tile, the first at `channel`, which is `block` of the range.
template <int P, class E>
void reverse_blocks(const vssm_scan& s, TileBuffers& tile, TaskScratch& scratch, int count, Direction<E>& from,
                    int64_t image, int64_t chunk, int64_t block, int64_t channel, TilePrefetch& ahead) {
    const int64_t N = s.states;
    int lanes[PAIR];
    for (int i = 0; i < P; ++i) {
        lanes[i] = ChannelRange::lanes(s, channel + i * W);
        prepare(s, tile, count, from, i, channel + i * W, lanes[i]);
    }
    const float* saved = s.saved + ((image * s.directions + from.k) * s.chunks + chunk) * N * s.channels + channel;
    float* sums = scratch.lanes;
    for_state_groups<REVERSE_GROUP>(N, [&](int64_t n, auto size) {
        const int64_t at = (block * N + n) * W;
        const StateGroup states{scratch.b + n,        scratch.c + n,   N,     scratch.rate + at,
                                scratch.carried + at, scratch.da + at, N * W, sums};
        const auto recompute_with = [&](auto readout) {
            recompute<P, size, readout>(tile.stretch, count, states, saved + n * s.channels, s.channels, lanes, tile.y,
                                        n == 0 ? &ahead : nullptr);
        };
        if (s.z.data)
            recompute_with(std::true_type{});
        else
            recompute_with(std::false_type{});
        reverse<P, size>(tile.stretch, count, states);
        sums += T * W;
    });
    for (int i = 0; i < P; ++i) store_gradients(s, tile, count, from, image, i, channel + i * W, lanes[i]);
}

template <class E>
void scan_task(const vssm_scan& s, int64_t image, int64_t group) {
    const ChannelRange range(s, group);
    const int64_t N = s.states;
    TileBuffers tile;
    TileTokens next;
    TaskScratch scratch(range.blocks, N);
    for (int64_t k = 0; k < s.directions; ++k) {
        Direction<E> from(s, image, k);
        std::fill_n(scratch.carried, 2 * range.blocks * N * W, 0.f);  // and da behind it
        copy_rates(s, k, range, scratch.rate);
        const Tiles tiles(s.walks[k]);
        TilePrefetch ahead = rows_ahead(s, from, image, range.channel(0));
        if (tiles.count() > 0) next.set(s.walks[k], tiles.first(tiles.count() - 1), tiles.steps(tiles.count() - 1));
        for (int64_t chunk = tiles.count() - 1; chunk >= 0; --chunk) {
            const int count = tiles.steps(chunk), next_count = chunk > 0 ? tiles.steps(chunk - 1) : 0;
            tile.visited = next;
            if (next_count) next.set(s.walks[k], tiles.first(chunk - 1), next_count);
            ahead.start(next, next_count, range.blocks);
            copy_states(from.b, tile.visited.reads, count, N, scratch.b);
            copy_states(from.c, tile.visited.reads, count, N, scratch.c);
            std::fill_n(scratch.lanes, scratch.groups * T * W, 0.f);
            for (int64_t block = 0; block < range.blocks; block += PAIR) {
                const int64_t channel = range.channel(block);
                if (block + PAIR <= range.blocks)
                    reverse_blocks<PAIR>(s, tile, scratch, count, from, image, chunk, block, channel, ahead);
                else
                    reverse_blocks<1>(s, tile, scratch, count, from, image, chunk, block, channel, ahead);
            }
            store_state_gradients(s, scratch, tile, count, image, group, k);
            if (tiles.starts_anew(chunk)) std::fill_n(scratch.carried, range.blocks * N * W, 0.f);
        }
        for (int64_t block = 0; block < range.blocks; ++block) {
            const int64_t channel = range.channel(block);
            for (int64_t n = 0; n < N; ++n)
                store(Vec::load(scratch.da + (block * N + n) * W),
                      s.da + ((image * s.directions + k) * N + n) * s.channels + channel,
                      ChannelRange::lanes(s, channel));
        }
    }
}

template <class E>
void backward(const vssm_scan& s) {
    const int64_t tasks = s.batch * s.groups;
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) scan_task<E>(s, task / s.groups, task % s.groups);
    }
}

}  // namespace

int scan_backward(const vssm_scan& s) {
    if (s.u.dtype == VSSM_BFLOAT16)
        backward<bfloat16>(s);
    else
        backward<float>(s);
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
