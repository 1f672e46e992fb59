// Causal convolution, y = silu(bias + sum_j weight[j] x[t - (taps - 1) + j]). Forward goes row by row, as memory likes
// it. Backward takes a tile of tokens and a block of channels at a time: the taps and their gradients stay in
// registers, the gradient before the activation in a tile.
#include "common/activations.h"
#include "common/rows.h"
#include "common/unroll.h"
#include "common/walk.h"
#include "include/conv.h"

#include <algorithm>

namespace VISION_SSM_ISA {

namespace {

struct Span {
    int64_t first, end;
};

// The tokens of one task.
Span span_of(const vssm_conv& s, int64_t group) {
    return {s.tokens * group / s.groups, s.tokens * (group + 1) / s.groups};
}

// Where tap j of direction k reads relative to the token: backwards in time, or forwards if the direction is reversed.
int64_t offset(const vssm_conv& s, int64_t k, int64_t tap) {
    const int64_t past = s.taps - 1 - tap;
    return s.reverse[k] ? past : -past;
}

Vec activate(Vec a) { return a * sigmoid(a); }

int lanes_at(const vssm_conv& s, int64_t channel) {
    return static_cast<int>(std::min<int64_t>(s.channels - channel, W));
}

template <class E>
void forward_task(const vssm_conv& s, int64_t image, int64_t group) {
    const Rows<const E> x(s.x, image, 0);
    const Span span = span_of(s, group);
    for (int64_t t = span.first; t < span.end; ++t)
        for (int64_t k = 0; k < s.directions; ++k) {
            E* out = Rows<E>(s.y, image, k).row(t);
            const E* rows[VSSM_MOST_TAPS];
            const float* weights[VSSM_MOST_TAPS];
            int used = 0;
            for (int64_t tap = 0; tap < s.taps; ++tap) {
                const int64_t from = t + offset(s, k, tap);
                if (from < 0 || from >= s.tokens) continue;
                rows[used] = x.row(from);
                weights[used++] = s.weight + (k * s.taps + tap) * s.channels;
            }
            const float* bias = s.bias + k * s.channels;
            for (int64_t channel = 0; channel < s.channels; channel += W) {
                const int lanes = lanes_at(s, channel);
                Vec a = load(bias + channel, lanes);
                for (int i = 0; i < used; ++i)
                    a = fma(load(weights[i] + channel, lanes), load(rows[i] + channel, lanes), a);
                store(s.activation ? activate(a) : a, out + channel, lanes);
            }
        }
}

// One direction, one block of channels, the tokens [first, end): add to dx and to the block's parameter gradients.
template <int Taps, class E>
void backward_block(const vssm_conv& s, int64_t image, int64_t k, Span span, int64_t channel, float* tile,
                    float* dparameters) {
    const int lanes = lanes_at(s, channel);
    const Rows<const E> x(s.x, image, 0), grad(s.grad, image, k);
    const Rows<float> dx(s.dx, image, 0);  // float32 whatever E: directions are summed in it
    Vec weight[Taps], dweight[Taps], dbias = Vec::set(0.f);
    unroll<Taps>([&](auto j) {
        weight[j] = load(s.weight + (k * Taps + j) * s.channels + channel, lanes);
        dweight[j] = load(dparameters + j * s.channels + channel, lanes);
    });
    const Vec bias = load(s.bias + k * s.channels + channel, lanes);
    const auto read = [&](int64_t t) {
        return t >= 0 && t < s.tokens ? load(x.row(t) + channel, lanes) : Vec::set(0.f);
    };
    // The gradient at a token needs the outputs that read it: up to Taps - 1 tokens beyond the span on one side.
    const int64_t side = Taps - 1;
    const int64_t from = std::max<int64_t>(span.first - (s.reverse[k] ? side : 0), 0);
    const int64_t to = std::min<int64_t>(span.end + (s.reverse[k] ? 0 : side), s.tokens);
    const int64_t step = s.reverse[k] ? -1 : 1;
    Vec window[Taps];  // x at the taps of the current token, oldest first
    const int64_t begin = s.reverse[k] ? to - 1 : from;
    unroll<Taps>([&](auto j) { window[j] = read(begin - step * (Taps - j)); });
    for (int64_t i = 0, t = begin; i < to - from; ++i, t += step) {
        unroll<Taps - 1>([&](auto j) { window[j] = window[j + 1]; });
        window[Taps - 1] = read(t);
        Vec g = load(grad.row(t) + channel, lanes);
        if (s.activation) {
            Vec a = bias;
            unroll<Taps>([&](auto j) { a = fma(weight[j], window[j], a); });
            const Vec gate = sigmoid(a);
            g = g * gate * fma(a, Vec::set(1.f) - gate, Vec::set(1.f));
        }
        g.store(tile + (t - from) * W);
        if (t < span.first || t >= span.end) continue;
        unroll<Taps>([&](auto j) { dweight[j] = fma(g, window[j], dweight[j]); });
        dbias = dbias + g;
    }
    for (int64_t t = span.first; t < span.end; ++t) {
        Vec sum = k ? load(dx.row(t) + channel, lanes) : Vec::set(0.f);
        unroll<Taps>([&](auto j) {
            const int64_t reader = t + step * (Taps - 1 - j);
            if (reader >= from && reader < to) sum = fma(weight[j], Vec::load(tile + (reader - from) * W), sum);
        });
        store(sum, dx.row(t) + channel, lanes);
    }
    unroll<Taps>([&](auto j) { store(dweight[j], dparameters + j * s.channels + channel, lanes); });
    float* db = dparameters + Taps * s.channels + channel;
    store(load(db, lanes) + dbias, db, lanes);
}

template <int Taps, class E>
void backward_task(const vssm_conv& s, int64_t image, int64_t group) {
    const Span span = span_of(s, group);
    const int64_t rows = (s.taps + 1) * s.channels;
    float* parameters = s.dparameters + (image * s.groups + group) * s.directions * rows;
    std::fill_n(parameters, s.directions * rows, 0.f);
    alignas(64) float tile[(T + 2 * VSSM_MOST_TAPS) * W];
    for (int64_t first = span.first; first < span.end; first += T)
        for (int64_t channel = 0; channel < s.channels; channel += W)
            for (int64_t k = 0; k < s.directions; ++k)
                backward_block<Taps, E>(s, image, k, {first, std::min<int64_t>(first + T, span.end)}, channel, tile,
                                        parameters + k * rows);
}

template <class F>
void for_tasks(const vssm_conv& s, F&& task) {
    const int64_t tasks = s.batch * s.groups;
#pragma omp parallel for schedule(static) num_threads(s.threads)
    for (int64_t i = 0; i < tasks; ++i) task(i / s.groups, i % s.groups);
}

template <int Taps, class E>
void backward(const vssm_conv& s) {
    for_tasks(s, [&](int64_t image, int64_t group) { backward_task<Taps, E>(s, image, group); });
}

template <class E>
void backward_with_taps(const vssm_conv& s) {
    with_constant<VSSM_MOST_TAPS>(s.taps, [&](auto taps) { backward<taps, E>(s); });
}

}  // namespace

int conv_forward(const vssm_conv& s) {
    if (s.x.dtype == VSSM_BFLOAT16)
        for_tasks(s, [&](int64_t image, int64_t group) { forward_task<bfloat16>(s, image, group); });
    else
        for_tasks(s, [&](int64_t image, int64_t group) { forward_task<float>(s, image, group); });
    return VSSM_DONE;
}

int conv_backward(const vssm_conv& s) {
    if (s.x.dtype == VSSM_BFLOAT16)
        backward_with_taps<bfloat16>(s);
    else
        backward_with_taps<float>(s);
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
