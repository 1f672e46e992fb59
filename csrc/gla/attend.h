// One task of forward gated linear attention, by the equations of include/gla.h: a range of the values of one head of an
// image. It takes the directions one after the other and each in tiles of VSSM_CHUNK steps, whose operands and state
// stay in the first-level cache. One lane is one value channel, so that the readout needs no sum over lanes.
#pragma once

#include "gla/sweep.h"
#include "gla/tile.h"

#include <vector>

namespace VISION_SSM_ISA {

// The value channels of one task.
struct ValueRange {
    int64_t first, width;

    ValueRange(const vssm_gla& g, int64_t group) {
        const int64_t pairs = ceil_div(g.values, 2 * W);  // what a sweep has in registers
        first = pairs * group / g.groups * 2 * W;
        width = std::min(pairs * (group + 1) / g.groups * 2 * W, g.values) - first;
    }
};

template <class E>
void attend(const vssm_gla& g, int64_t image, int64_t head, const ValueRange& range) {
    const int64_t N = g.keys, keys = round_up(N, W), values = round_up(range.width, W);
    std::vector<float> memory(static_cast<size_t>(3 * T * keys + 2 * T * values + N * values));
    float *gate = memory.data(), *k = gate + T * keys, *q = k + T * keys, *v = q + T * keys;
    float *y = v + T * values, *state = y + T * values;
    const int64_t key = head * N, value = head * g.values + range.first;
    const Rows<E> q_rows(g.q, image, 0), k_rows(g.k, image, 0), v_rows(g.v, image, 0);
    TileTokens visited, next;
    for (int64_t d = 0; d < g.directions; ++d) {
        const vssm_walk& walk = g.walks[d];
        const Tiles tiles(walk);
        const Rows<float> gates(g.gates, image, d), out(g.y, image, d);
        const bool add = g.merge && adds_to_shared(g, d);
        RowsAhead ahead;
        ahead.add(gates, key, N, false);
        ahead.add(k_rows, key, N, false);
        ahead.add(q_rows, key, N, false);
        ahead.add(v_rows, value, range.width, false);
        ahead.add(out, value, range.width, true);
        const int64_t all = tiles.count();
        if (all > 0) next.set(walk, 0, tiles.steps(0));
        for (int64_t tile = 0; tile < all; ++tile) {
            const int count = tiles.steps(tile), next_count = tile + 1 < all ? tiles.steps(tile + 1) : 0;
            visited = next;
            if (next_count) next.set(walk, tiles.first(tile + 1), next_count);
            ahead.start(next, next_count);
            if (tiles.starts_anew(tile)) std::fill_n(state, N * values, 0.f);
            gather_gates(gates, visited.reads, count, key, N, gate, keys);
            gather(k_rows, visited.reads, count, key, N, 1.f, k, keys);
            gather(q_rows, visited.reads, count, key, N, g.scale, q, keys);
            gather(v_rows, visited.reads, count, value, range.width, 1.f, v, values);
            sweep<true, false>({gate, k, v, q, keys, values, y, state}, N, values / W, count, ahead);
            scatter(y, values, out, visited.writes, count, value, range.width, add);
        }
    }
}

}  // namespace VISION_SSM_ISA
