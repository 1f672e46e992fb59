// Sweeps of a state over a tile of steps, a few rows and vectors of it in registers at a time.
//
//   forwards:  S = d[t] S + a[t] b[t]^T,   out[t] = c[t]^T S                   t ascending
//   backwards: S = S + a[t] b[t]^T,   out[t] = c[t]^T S,   S = d[t] S          t descending
//
// a and c have an element per row of S, b and out a lane per column; the decay d is either's. So no sum goes over lanes.
#pragma once

#include "common/rounding.h"
#include "common/unroll.h"
#include "gla/ahead.h"

namespace VISION_SSM_ISA {

// Rows in registers together, two vectors of each.
#if defined(__AVX512F__)
constexpr int SWEEP_ROWS = 8;
#else
constexpr int SWEEP_ROWS = 4;
#endif

// Where the operands of a tile lie: a row of each per step, rows' and lanes' strides apart.
struct Sweep {
    const float *decay, *a, *b, *c;
    int64_t row_stride, lane_stride;  // of a and c; of b and out
    float* out;
    float* state;  // [rows][lane_stride]
};

template <int R, int C, bool DECAY_BY_ROW, bool BACKWARDS, bool FIRST>
inline void sweep_part(const Sweep& s, int64_t row, int64_t lane, int count) {
    Vec state[R * C];
    unroll<R>([&](auto r) {
        unroll<C>([&](auto c) { state[r * C + c] = Vec::load(s.state + (row + r) * s.lane_stride + lane + c * W); });
    });
    for (int i = 0; i < count; ++i) {
        const int t = BACKWARDS ? count - 1 - i : i;
        const float *a = s.a + t * s.row_stride + row, *c_row = s.c + t * s.row_stride + row;
        const float* row_decay = s.decay + t * s.row_stride + row;
        const float* lane_decay = s.decay + t * s.lane_stride + lane;
        float* to = s.out + t * s.lane_stride + lane;
        Vec b[C], out[C], decay[C];
        unroll<C>([&](auto c) {
            b[c] = Vec::load(s.b + t * s.lane_stride + lane + c * W);
            out[c] = FIRST ? Vec::set(0.f) : Vec::load(to + c * W);
            if constexpr (!DECAY_BY_ROW) decay[c] = Vec::load(lane_decay + c * W);
        });
        unroll<R>([&](auto r) {
            const Vec ar = Vec::set(a[r]), cr = Vec::set(c_row[r]);
            const Vec dr = DECAY_BY_ROW ? Vec::set(row_decay[r]) : Vec::set(0.f);
            unroll<C>([&](auto c) {
                Vec& x = state[r * C + c];
                const Vec d = DECAY_BY_ROW ? dr : decay[c];
                x = BACKWARDS ? fma(ar, b[c], x) : fma(ar, b[c], d * x);
                out[c] = fma(cr, x, out[c]);
                if constexpr (BACKWARDS) x = d * x;
            });
        });
        unroll<C>([&](auto c) { out[c].store(to + c * W); });
    }
    unroll<R>([&](auto r) {
        unroll<C>([&](auto c) { state[r * C + c].store(s.state + (row + r) * s.lane_stride + lane + c * W); });
    });
}

// Sweep `rows` rows of `vectors` vectors each over `count` steps. Rows of the next tile are fetched meanwhile, a few
// between two parts of the state.
template <bool DECAY_BY_ROW, bool BACKWARDS>
void sweep(const Sweep& s, int64_t rows, int64_t vectors, int count, RowsAhead& ahead) {
    const int each = ahead.rows_each(ceil_div(rows, SWEEP_ROWS) * ceil_div(vectors, 2));
    const auto over_rows = [&](int64_t lane, auto wide) {
        for_state_groups<SWEEP_ROWS>(rows, [&](int64_t row, auto size) {
            ahead.fetch(each);
            if (row == 0)
                sweep_part<size, wide, DECAY_BY_ROW, BACKWARDS, true>(s, row, lane, count);
            else
                sweep_part<size, wide, DECAY_BY_ROW, BACKWARDS, false>(s, row, lane, count);
        });
    };
    int64_t at = 0;
    for (; at + 2 <= vectors; at += 2) over_rows(at * W, std::integral_constant<int, 2>{});
    if (at < vectors) over_rows(at * W, std::integral_constant<int, 1>{});
}

}  // namespace VISION_SSM_ISA
