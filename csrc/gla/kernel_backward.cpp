// Backward gated linear attention. A task is a direction of a head of an image; it sweeps three times:
//
//   forwards, a lane per key:     dq[t] = scale S[t] do[t]; the states behind every tile are kept
//   backwards, a lane per key:    dk[t] = G[t] v[t],      G[t] = dL/dS[t] = exp(g[t+1]) G[t+1] + scale q[t] do[t]^T
//   backwards, a lane per value:  dv[t] = G[t]^T k[t]
//
// The gradient of a log-gate, exp(g[t]) sum_v G[t] S[t-1], follows from these: with x[t] = exp(g[t]) sum_v G[t] S[t-1],
//
//   x[t] = x[t+1] + q[t] dq[t] - k[t] dk[t],      behind a tile: x[end + 1] = sum_v (exp(g[end+1]) G[end+1]) S[end]
//
// The sum starts anew at every tile, so that it does not add up errors along the sequence.
#include "common/arena.h"
#include "common/threads.h"
#include "gla/sweep.h"
#include "gla/tile.h"

#include <atomic>
#include <thread>
#include <vector>

namespace VISION_SSM_ISA {

namespace {

// What a task works with, [T] rows each, and what it keeps of one direction.
struct Scratch {
    int64_t keys, values, tiles;
    float *gate, *k, *q, *key_out;       // [T][keys]
    float *v, *grad, *value_out;         // [T][values]
    float *by_key, *by_value;            // states [V][keys], [N][values]
    float *behind;                       // [tiles][V][keys]
    float *dq;                           // [tiles][T][keys]

    static int64_t size(const vssm_gla& g) {
        return 4 * T * keys_of(g) + 3 * T * values_of(g) + g.values * keys_of(g) + g.keys * values_of(g) +
               tiles_of(g) * (g.values + T) * keys_of(g) + 16 * Arena::LINE;
    }
    explicit Scratch(const vssm_gla& g, float* memory) : keys(keys_of(g)), values(values_of(g)), tiles(tiles_of(g)) {
        const auto take = [&memory](int64_t floats) {
            float* part = memory;
            memory += round_up(floats, Arena::LINE);
            return part;
        };
        for (float** p : {&gate, &k, &q, &key_out}) *p = take(T * keys);
        for (float** p : {&v, &grad, &value_out}) *p = take(T * values);
        by_key = take(g.values * keys);
        by_value = take(g.keys * values);
        behind = take(tiles * g.values * keys);
        dq = take(tiles * T * keys);
    }

  private:
    static int64_t keys_of(const vssm_gla& g) { return round_up(g.keys, W); }
    static int64_t values_of(const vssm_gla& g) { return round_up(g.values, W); }
    static int64_t tiles_of(const vssm_gla& g) {
        int64_t most = 0;
        for (int64_t d = 0; d < g.directions; ++d) most = std::max(most, Tiles(g.walks[d]).count());
        return most;
    }
};

// One direction of one head.
template <class E>
class DirectionAdjoint {
  public:
    DirectionAdjoint(const vssm_gla& g, Scratch& s, int64_t image, int64_t head, int64_t d)
        : g_(g),
          s_(s),
          walk_(g.walks[d]),
          tiles_(walk_),
          key_(head * g.keys),
          value_(head * g.values),
          add_(adds_to_shared(g, d)),
          q_(g.q, image, 0),
          k_(g.k, image, 0),
          v_(g.v, image, 0),
          grad_(g.grad, image, d),
          gates_(g.gates, image, d),
          dq_(g.dq, image, 0),
          dk_(g.dk, image, 0),
          dv_(g.dv, image, 0),
          dgates_(g.dgates, image, d) {
        for (const auto* rows : {&k_, &q_}) ahead_.add(*rows, key_, g.keys, false);
        ahead_.add(gates_, key_, g.keys, false);
        ahead_.add(v_, value_, g.values, false);
        ahead_.add(grad_, value_, g.values, true);
    }

    void run() {
        for (int64_t tile = 0; tile < tiles_.count(); ++tile) forwards(tile);
        std::fill_n(s_.by_key, g_.values * s_.keys, 0.f);
        std::fill_n(s_.by_value, g_.keys * s_.values, 0.f);
        for (int64_t tile = tiles_.count() - 1; tile >= 0; --tile) backwards(tile);
    }

  private:
    int load(int64_t tile) {
        const int count = tiles_.steps(tile);
        visited_.set(walk_, tiles_.first(tile), count);
        gather_gates(gates_, visited_.reads, count, key_, g_.keys, s_.gate, s_.keys);
        gather(k_, visited_.reads, count, key_, g_.keys, 1.f, s_.k, s_.keys);
        gather(v_, visited_.reads, count, value_, g_.values, 1.f, s_.v, s_.values);
        gather(grad_, visited_.writes, count, value_, g_.values, g_.scale, s_.grad, s_.values);
        return count;
    }

    // Let a tile's rows be fetched during what follows, if there is such a tile.
    void look_ahead(int64_t tile) {
        const bool there = tile >= 0 && tile < tiles_.count();
        if (there) next_.set(walk_, tiles_.first(tile), tiles_.steps(tile));
        ahead_.start(next_, there ? tiles_.steps(tile) : 0);
    }

    void forwards(int64_t tile) {
        const int count = load(tile);
        look_ahead(tile + 1);
        float* dq = s_.dq + tile * T * s_.keys;
        if (tiles_.starts_anew(tile)) std::fill_n(s_.by_key, g_.values * s_.keys, 0.f);
        sweep<false, false>({s_.gate, s_.v, s_.k, s_.grad, s_.values, s_.keys, dq, s_.by_key}, g_.values,
                            s_.keys / W, count, ahead_);
        std::copy_n(s_.by_key, g_.values * s_.keys, s_.behind + tile * g_.values * s_.keys);
        scatter(dq, s_.keys, dq_, visited_.reads, count, key_, g_.keys, add_);
    }

    void backwards(int64_t tile) {
        const int count = load(tile);
        look_ahead(tile - 1);
        gather(q_, visited_.reads, count, key_, g_.keys, 1.f, s_.q, s_.keys);
        const float* behind = s_.behind + tile * g_.values * s_.keys;
        std::vector<float> sum(static_cast<size_t>(s_.keys), 0.f);
        for (int64_t v = 0; v < g_.values; ++v)
            for (int64_t n = 0; n < s_.keys; n += W)
                fma(Vec::load(s_.by_key + v * s_.keys + n), Vec::load(behind + v * s_.keys + n),
                    Vec::load(sum.data() + n))
                    .store(sum.data() + n);
        sweep<false, true>({s_.gate, s_.grad, s_.q, s_.v, s_.values, s_.keys, s_.key_out, s_.by_key}, g_.values,
                           s_.keys / W, count, ahead_);
        scatter(s_.key_out, s_.keys, dk_, visited_.reads, count, key_, g_.keys, add_);
        sweep<true, true>({s_.gate, s_.q, s_.grad, s_.k, s_.keys, s_.values, s_.value_out, s_.by_value}, g_.keys,
                          s_.values / W, count, ahead_);
        scatter(s_.value_out, s_.values, dv_, visited_.reads, count, value_, g_.values, add_);
        gate_gradients(tile, count, sum.data());
        if (tiles_.starts_anew(tile)) {
            std::fill_n(s_.by_key, g_.values * s_.keys, 0.f);
            std::fill_n(s_.by_value, g_.keys * s_.values, 0.f);
        }
    }

    // Writes them over dk, [T][keys], on their way out. A closed gate has none.
    void gate_gradients(int64_t tile, int count, const float* behind) {
        const float* dq = s_.dq + tile * T * s_.keys;
        for (int64_t n = 0; n < s_.keys; n += W) {
            Vec sum = Vec::load(behind + n);
            for (int t = count - 1; t >= 0; --t) {
                const int64_t at = t * s_.keys + n;
                const Vec kept = Vec::load(s_.k + at) * Vec::load(s_.key_out + at);
                sum = sum + (Vec::load(s_.q + at) * Vec::load(dq + at) - kept);
                const Vec closed = Vec::load(s_.gate + at) - Vec::set(1e-37f);
                where_negative(closed, Vec::set(0.f), sum).store(s_.key_out + at);
            }
        }
        scatter(s_.key_out, s_.keys, dgates_, visited_.reads, count, key_, g_.keys, false);
    }

    const vssm_gla& g_;
    Scratch& s_;
    const vssm_walk& walk_;
    const Tiles tiles_;
    const int64_t key_, value_;
    const bool add_;
    const Rows<E> q_, k_, v_, grad_;
    const Rows<float> gates_, dq_, dk_, dv_, dgates_;
    TileTokens visited_ = {}, next_ = {};
    RowsAhead ahead_;
};

// Tasks in the order in which threads take them: the first direction of every head, the second of every head, and so on.
// Directions add to what they share one after the other, so that sums do not depend on threads: a task waits for the
// direction before it, which another thread has begun.
class Tasks {
  public:
    explicit Tasks(const vssm_gla& g)
        : heads_(g.batch * g.heads), count_(heads_ * g.directions), done_(static_cast<size_t>(heads_)) {}

    // Calls run(head of an image, direction) until no task is left.
    template <class F>
    void take(F run) {
        for (int64_t task; (task = next_.fetch_add(1)) < count_;) {
            const int64_t head = task % heads_, d = task / heads_;
            std::atomic<int64_t>& done = done_[static_cast<size_t>(head)];
            while (done.load(std::memory_order_acquire) < d) std::this_thread::yield();
            run(head, d);
            done.store(d + 1, std::memory_order_release);
        }
    }

  private:
    const int64_t heads_, count_;
    std::atomic<int64_t> next_{0};
    std::vector<std::atomic<int64_t>> done_;  // directions of each head
};

template <class E>
int backward(const vssm_gla& g) {
    const int64_t size = round_up(Scratch::size(g), Arena::LINE);
    Arena arena;
    if (!arena.reserve(size * g.threads)) return VSSM_NO_MEMORY;
    float* memory = arena.take(size * g.threads);
    Tasks tasks(g);
#pragma omp parallel num_threads(g.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        Scratch scratch(g, memory + team.index * size);
        tasks.take([&](int64_t head, int64_t d) {
            DirectionAdjoint<E>(g, scratch, head / g.heads, head % g.heads, d).run();
        });
    }
    return VSSM_DONE;
}

}  // namespace

int gla_backward(const vssm_gla& g) {
    return g.q.dtype == VSSM_BFLOAT16 ? backward<bfloat16>(g) : backward<float>(g);
}

}  // namespace VISION_SSM_ISA
