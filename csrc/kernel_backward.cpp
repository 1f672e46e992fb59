// Backward scan. The tiles of a direction are taken from the last to the first; each is recomputed from the state
// that the forward pass saved before it, then walked backwards:
//
//   g[t] = C[t] dy[t] + keep[t+1] g[t+1]      keep[t] = exp(delta[t] A)      q[t] = g[t] keep[t] h[t-1]
//   dC[t] = sum_c dy h      dB[t] = sum_c g delta u      dA = sum_t q delta
//   ddelta = sum_n q A + u sum_n g B      du = delta sum_n g B + D dy
//
// Every sum runs in an order that depends only on shapes and on `groups`, so equal calls give equal bits.
#include "tile.h"

namespace VISION_SSM_ISA {

namespace {

// G states give 2G vectors (for dB and dC) whose lanes are summed together into one vector of W = 2G lanes.
constexpr int G = W / 2;

struct Tile {
    alignas(64) float u[T * W];
    alignas(64) float delta[T * W];
    alignas(64) float slope[T * W];  // d softplus
    alignas(64) float drive[T * W];  // delta * u
    alignas(64) float dy[T * W];     // gradient of the ungated readout
    alignas(64) float y[T * W];      // ungated readout, for the gate's gradient
    alignas(64) float sum_gb[T * W];
    alignas(64) float sum_qa[T * W];  // in units of log2
    alignas(64) float keep[T * G * W];
    alignas(64) float h[(T + 1) * G * W];
    Places places;
};

// Memory of one task beside the tile.
struct Workspace {
    std::vector<float> memory;
    float *carried, *da, *rate;  // [blocks][N][W]
    float *b, *c;             // [T][N]
    float* lanes;             // [state groups][T][W]: lane sums of dB and dC
    int64_t lanes_size;
    int lane_of[W];  // lane in which sum_lanes puts the sum of its i-th vector

    Workspace(int64_t blocks, int64_t states) {
        const int64_t groups = states / G + G;  // whole groups and at most log2(G) smaller ones
        lanes_size = groups * T * W;
        memory.resize(static_cast<size_t>(3 * blocks * states * W + 2 * T * states + lanes_size));
        carried = memory.data();
        da = carried + blocks * states * W;
        rate = da + blocks * states * W;
        b = rate + blocks * states * W;
        c = b + T * states;
        lanes = c + T * states;
        Vec probe[W];
        for (int i = 0; i < W; ++i) probe[i] = Vec::set(static_cast<float>(i));
        float sums[W];
        sum_lanes<W>(probe).store(sums);
        for (int lane = 0; lane < W; ++lane) lane_of[static_cast<int>(sums[lane] / W + 0.5f)] = lane;
    }
};

// Recompute M states over the tile into tile.h and tile.keep; add their part of the readout to tile.y.
template <int M>
void recompute(Tile& tile, int count, const float* rate, const float* before, int64_t stride, int lanes,
               const float* b, const float* c, int64_t states, bool readout, Ahead* ahead) {
    const Exp2 exp2;
    Vec state[M];
    unroll<M>([&](auto n) {
        state[n] = load(before + n * stride, lanes);
        state[n].store(tile.h + n * W);
    });
    for (int t = 0; t < count; ++t) {
        const Vec delta = Vec::load(tile.delta + t * W), drive = Vec::load(tile.drive + t * W);
        const float *bt = b + t * states, *ct = c + t * states;
        float *keep = tile.keep + t * M * W, *h = tile.h + (t + 1) * M * W;
        if (ahead) ahead->fetch();
        Vec y = Vec::set(0.f);
        unroll<M>([&](auto n) {
            const Vec factor = exp2(delta, Vec::load(rate + n * W));
            factor.store(keep + n * W);
            state[n] = fma(factor, state[n], drive * Vec::set(bt[n]));
            state[n].store(h + n * W);
            if (readout) y = fma(state[n], Vec::set(ct[n]), y);
        });
        if (readout) (Vec::load(tile.y + t * W) + y).store(tile.y + t * W);
    }
}

// Walk M states of the tile backwards.
template <int M>
void reverse(Tile& tile, int count, const float* rate, const float* b, const float* c, int64_t states, float* carried,
             float* sum_da, float* lanes) {
    Vec carry[M], da[M];
    unroll<M>([&](auto n) {
        carry[n] = Vec::load(carried + n * W);
        da[n] = Vec::load(sum_da + n * W);
    });
    for (int t = count - 1; t >= 0; --t) {
        const Vec delta = Vec::load(tile.delta + t * W), drive = Vec::load(tile.drive + t * W);
        const Vec dy = Vec::load(tile.dy + t * W);
        const float *bt = b + t * states, *ct = c + t * states;
        const float *keep = tile.keep + t * M * W, *h = tile.h + (t + 1) * M * W, *before = tile.h + t * M * W;
        Vec gb = Vec::set(0.f), qa = Vec::set(0.f), sums[W];
        unroll<M>([&](auto n) {
            const Vec g = fma(dy, Vec::set(ct[n]), carry[n]);
            sums[2 * n] = g * drive;
            sums[2 * n + 1] = Vec::load(h + n * W) * dy;
            gb = fma(g, Vec::set(bt[n]), gb);
            carry[n] = g * Vec::load(keep + n * W);
            const Vec q = carry[n] * Vec::load(before + n * W);
            qa = fma(q, Vec::load(rate + n * W), qa);
            da[n] = fma(q, delta, da[n]);
        });
        unroll<W - 2 * M>([&](auto i) { sums[2 * M + i] = Vec::set(0.f); });
        (Vec::load(tile.sum_gb + t * W) + gb).store(tile.sum_gb + t * W);
        (Vec::load(tile.sum_qa + t * W) + qa).store(tile.sum_qa + t * W);
        (Vec::load(lanes + t * W) + sum_lanes<W>(sums)).store(lanes + t * W);
    }
    unroll<M>([&](auto n) {
        carry[n].store(carried + n * W);
        da[n].store(sum_da + n * W);
    });
}

// One direction of one image, typed.
template <class E>
struct Direction {
    Rows<E> u, delta, b, c, z, grad;
    int64_t k;
    Vec skip, bias;  // of the current block

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
void prepare(const vssm_scan& s, Tile& tile, int count, Direction<E>& from, int64_t channel, int lanes) {
    const int64_t parameter = from.k * s.channels + channel;
    from.skip = s.skip ? load(s.skip + parameter, lanes) : Vec::set(0.f);
    from.bias = s.bias ? load(s.bias + parameter, lanes) : Vec::set(0.f);
    for (int t = 0; t < count; ++t) {
        const int64_t read = tile.places.reads[t], write = tile.places.writes[t];
        const Vec u = load(from.u.row(read) + channel, lanes);
        const Vec raw = load(from.delta.row(read) + channel, lanes) + from.bias;
        Vec dy = load(from.grad.row(write) + channel, lanes), delta = raw, slope = Vec::set(1.f);
        if (s.softplus) {
            const Vec w = fading(raw);
            delta = softplus(raw, w);
            slope = softplus_slope(raw, w);
        }
        if (s.z.data) {
            const Vec z = load(from.z.row(write) + channel, lanes);
            dy = dy * z * sigmoid(z);
            (from.skip * u).store(tile.y + t * W);
        }
        u.store(tile.u + t * W);
        delta.store(tile.delta + t * W);
        slope.store(tile.slope + t * W);
        (delta * u).store(tile.drive + t * W);
        dy.store(tile.dy + t * W);
    }
    std::fill_n(tile.sum_gb, count * W, 0.f);
    std::fill_n(tile.sum_qa, count * W, 0.f);
}

// All rows that a tile reads or writes: loads wait for memory, and so do stores, which retire in order.
template <class E>
Ahead rows_ahead(const vssm_scan& s, const Direction<E>& from, int64_t image, int64_t channel) {
    Ahead ahead;
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
constexpr int NEAR = 8;

template <class E>
class Near {
  public:
    Near(const vssm_scan& s, const Direction<E>& from, int64_t image, int64_t channel) : gated_(s.z.data != nullptr) {
        set(du_, s.du, image, from.k, channel);
        set(ddelta_, s.ddelta, image, from.k, channel);
        if (!gated_) return;
        set(dz_, s.dz, image, from.k, channel);
        grad_ = {reinterpret_cast<const char*>(from.grad.base + channel), from.grad.stride * int64_t{sizeof(E)}};
        z_ = {reinterpret_cast<const char*>(from.z.base + channel), from.z.stride * int64_t{sizeof(E)}};
    }
    void fetch(const Places& places, int t) const {
        const int64_t read = places.reads[t], write = places.writes[t];
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
VSSM_INLINE void put(const vssm_tensor& to, int64_t image, int64_t k, int64_t token, int64_t channel, int lanes, bool add, Vec x) {
    if (to.dtype == VSSM_FLOAT32) {
        float* p = Rows<float>(to, image, k).row(token) + channel;
        store(add ? x + load(p, lanes) : x, p, lanes);
    } else {
        E* p = Rows<E>(to, image, k).row(token) + channel;
        store(add ? x + load(p, lanes) : x, p, lanes);
    }
}

template <class E>
void emit(const vssm_scan& s, const Tile& tile, int count, const Direction<E>& from, int64_t image, int64_t channel,
          int lanes) {
    const int64_t k = from.k;
    const auto adds = [&](const vssm_tensor& to) { return to.direction_stride == 0 && adds_to_shared(s, k); };
    const bool add_u = adds(s.du), add_delta = adds(s.ddelta), add_z = adds_to_shared(s, k);
    const Near<E> rows(s, from, image, channel);
    Vec dskip = Vec::set(0.f), dbias = Vec::set(0.f);
    for (int t = 0; t < count; ++t) {
        if (t + NEAR < count) rows.fetch(tile.places, t + NEAR);
        const int64_t token = tile.places.reads[t];
        const Vec u = Vec::load(tile.u + t * W), gb = Vec::load(tile.sum_gb + t * W), dy = Vec::load(tile.dy + t * W);
        const Vec ddelta =
            fma(Vec::load(tile.sum_qa + t * W), Vec::set(LN2), u * gb) * Vec::load(tile.slope + t * W);
        dskip = fma(dy, u, dskip);
        dbias = dbias + ddelta;
        put<E>(s.ddelta, image, k, token, channel, lanes, add_delta, ddelta);
        put<E>(s.du, image, k, token, channel, lanes, add_u, fma(Vec::load(tile.delta + t * W), gb, from.skip * dy));
        if (s.z.data) {
            const int64_t write = tile.places.writes[t];
            const Vec z = load(from.z.row(write) + channel, lanes), gate = sigmoid(z);
            const Vec slope = gate * fma(z, Vec::set(1.f) - gate, Vec::set(1.f));
            const Vec dz = load(from.grad.row(write) + channel, lanes) * Vec::load(tile.y + t * W) * slope;
            put<E>(s.dz, image, k, write, channel, lanes, add_z, dz);
        }
    }
    const int64_t parameter = (image * s.directions + k) * s.channels + channel;
    const auto accumulate = [lanes](float* p, Vec x) { store(load(p, lanes) + x, p, lanes); };
    accumulate(s.dskip + parameter, dskip);
    accumulate(s.dbias + parameter, dbias);
}

// Take the lane sums of a tile to the gradients of B and C at the tile's tokens.
void emit_states(const vssm_scan& s, const Workspace& work, const Tile& tile, int count, int64_t image, int64_t group,
                 int64_t k) {
    const auto write = [&](float* to, int64_t directions, int which) {
        const bool add = directions == 1 && adds_to_shared(s, k);
        float* base = to + ((group * s.batch + image) * directions + (directions == 1 ? 0 : k)) * s.tokens * s.states;
        int64_t slot = 0;
        for_state_groups<G>(s.states, [&](int64_t n, auto size) {
            for (int t = 0; t < count; ++t) {
                const float* sums = work.lanes + (slot * T + t) * W;
                float* row = base + tile.places.reads[t] * s.states + n;
                for (int i = 0; i < size; ++i) {
                    const float sum = sums[work.lane_of[2 * i + which]];
                    row[i] = add ? row[i] + sum : sum;
                }
            }
            ++slot;
        });
    };
    write(s.db, s.db_directions, 0);
    write(s.dc, s.dc_directions, 1);
}

template <class E>
void scan_task(const vssm_scan& s, int64_t image, int64_t group) {
    const Share share(s, group);
    const int64_t N = s.states;
    Tile tile;
    Places next;
    Workspace work(share.blocks, N);
    for (int64_t k = 0; k < s.directions; ++k) {
        Direction<E> from(s, image, k);
        std::fill_n(work.carried, 2 * share.blocks * N * W, 0.f);  // and da behind it
        copy_rates(s, k, share, work.rate);
        const Tiles tiles(s.walks[k]);
        Ahead ahead = rows_ahead(s, from, image, share.channel(0));
        if (tiles.count() > 0) next.set(s.walks[k], tiles.first(tiles.count() - 1), tiles.steps(tiles.count() - 1));
        for (int64_t chunk = tiles.count() - 1; chunk >= 0; --chunk) {
            const int count = tiles.steps(chunk), next_count = chunk > 0 ? tiles.steps(chunk - 1) : 0;
            tile.places = next;
            if (next_count) next.set(s.walks[k], tiles.first(chunk - 1), next_count);
            ahead.start(next, next_count, share.blocks);
            copy_states(from.b, tile.places.reads, count, N, work.b);
            copy_states(from.c, tile.places.reads, count, N, work.c);
            std::fill_n(work.lanes, work.lanes_size, 0.f);
            for (int64_t block = 0; block < share.blocks; ++block) {
                const int64_t channel = share.channel(block);
                const int lanes = Share::lanes(s, channel);
                prepare(s, tile, count, from, channel, lanes);
                const float* saved = s.saved + ((image * s.directions + k) * s.chunks + chunk) * N * s.channels;
                int64_t slot = 0;
                for_state_groups<G>(N, [&](int64_t n, auto size) {
                    const int64_t state = (block * N + n) * W;
                    const float* rate = work.rate + state;
                    recompute<size>(tile, count, rate, saved + n * s.channels + channel, s.channels, lanes, work.b + n,
                                    work.c + n, N, s.z.data != nullptr, n == 0 ? &ahead : nullptr);
                    reverse<size>(tile, count, rate, work.b + n, work.c + n, N, work.carried + state,
                                  work.da + state, work.lanes + slot * T * W);
                    ++slot;
                });
                emit(s, tile, count, from, image, channel, lanes);
            }
            emit_states(s, work, tile, count, image, group, k);
            if (tiles.starts_anew(chunk)) std::fill_n(work.carried, share.blocks * N * W, 0.f);
        }
        for (int64_t block = 0; block < share.blocks; ++block) {
            const int64_t channel = share.channel(block);
            for (int64_t n = 0; n < N; ++n)
                store(Vec::load(work.da + (block * N + n) * W),
                      s.da + ((image * s.directions + k) * N + n) * s.channels + channel,
                      Share::lanes(s, channel));
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
