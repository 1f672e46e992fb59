// The MLP branch of a block. Threads share the tokens, a tile at a time; or, where there are few, the outputs of each
// product, so that no weight is rearranged twice.
#include "mlp.h"

#include "norm.h"
#include "team.h"

namespace VISION_SSM_ISA {

namespace {

constexpr int64_t FEW_TOKENS = 256;
constexpr int64_t TILE_VALUES = int64_t{96} << 10;  // most hidden values of a tile: they share a cache with the weights

// x times the normal distribution's share below it. Above |x| that share is exp(-x^2 / 2) p(1 / (1 + 0.3 |x|)), with p
// fitted for the least relative error up to |x| = 6, 5e-8 in exact arithmetic.
inline Vec gelu(Vec x) {
    // The bound keeps the exponent finite; the share is below 1e-38 there.
    const Vec a = Vec::set(0.f) - maximum(Vec::set(-14.f), Vec::set(0.f) - absolute(x));
    const Vec t = reciprocal(fma(Vec::set(0.3f), a, Vec::set(1.f)));
    Vec p = Vec::set(3.730446845e-02f);
    p = fma(p, t, Vec::set(-1.639339477e-01f));
    p = fma(p, t, Vec::set(2.178329378e-01f));
    p = fma(p, t, Vec::set(-6.411679089e-02f));
    p = fma(p, t, Vec::set(1.339906156e-01f));
    p = fma(p, t, Vec::set(9.830595553e-02f));
    p = fma(p, t, Vec::set(1.210028753e-01f));
    p = fma(p, t, Vec::set(1.196139082e-01f));
    const Vec above = Exp2()(a * a, Vec::set(-0.5f * LOG2E)) * (p * t);
    return maximum(x, Vec::set(0.f)) - a * above;
}

// The weights, of all threads or of one.
struct Weights {
    Norm norm;
    Packed fc1, fc2;
    float *fc1_bias, *fc2_bias;  // up to whole vectors

    static int64_t size(const vssm_mlp& s, bool by_panel) {
        const int64_t products = by_panel ? 2 * Packed::size_with_source()
                                          : Packed::size(s.hidden, s.width) + Packed::size(s.width, s.hidden);
        return products + Norm::size(s.width) + round_up(s.hidden, W) + round_up(s.width, W) + 6 * Arena::LINE;
    }
    Weights(const vssm_mlp& s, bool by_panel, Arena& arena) : norm(s.width, arena) {
        const auto product = [&](const void* source, int64_t outputs, int64_t inputs) {
            const int64_t floats = by_panel ? Packed::size_with_source() : Packed::size(outputs, inputs);
            Packed made{inputs, outputs, arena.take(floats), Packed::takes_pairs(s.product_dtype)};
            if (by_panel) made.source = source;
            made.source_dtype = s.parameter_dtype;
            return made;
        };
        fc1 = product(s.fc1, s.hidden, s.width);
        fc2 = product(s.fc2, s.width, s.hidden);
        fc1_bias = arena.take(round_up(s.hidden, W));
        fc2_bias = arena.take(round_up(s.width, W));
    }
    // Filling is cut into this many independent parts; the first is all but the products.
    int64_t parts() const { return 1 + fc1.panels() + fc2.panels(); }
    template <class P>
    void fill(const vssm_mlp& s, int64_t part) {
        if (part == 0) {
            norm.fill<P>(s.norm, s.eps, s.norm_weight, s.norm_bias);
            fill_bias<P>(s.fc1_bias, s.hidden, fc1_bias);
            fill_bias<P>(s.fc2_bias, s.width, fc2_bias);
        } else if (part <= fc1.panels()) {
            fc1.fill(static_cast<const P*>(s.fc1), part - 1);
        } else {
            fc2.fill(static_cast<const P*>(s.fc2), part - 1 - fc1.panels());
        }
    }
    void fill(const vssm_mlp& s, int64_t part, int32_t dtype) {
        dtype == VSSM_BFLOAT16 ? fill<bfloat16>(s, part) : fill<float>(s, part);
    }

  private:
    template <class P>
    static void fill_bias(const void* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += W)
            load(static_cast<const P*>(from) + i, static_cast<int>(std::min<int64_t>(count - i, W))).store(to + i);
    }
};

// A thread's rows.
struct Rooms {
    int64_t width, stride;  // of rows of C and of H values
    float *stream;  // [rows][width]: x + added
    float *normed;  // [rows][width]
    float *hidden;  // [rows][stride]
    float *result;  // [rows][width]: what fc2 yields
    float *pairs;   // [rows][...]: what a product takes, where it takes pairs

    static int64_t pairs_of(const vssm_mlp& s) {
        return Packed::takes_pairs(s.product_dtype) ? Packed::pairs_stride(std::max(s.width, s.hidden)) : 0;
    }
    static int64_t size(const vssm_mlp& s, int64_t rows, bool with_hidden) {
        const int64_t width = Scratch::stride_of(s.width), stride = with_hidden ? Scratch::stride_of(s.hidden) : 0;
        return rows * (3 * width + stride + pairs_of(s)) + 5 * Arena::LINE;
    }
    Rooms(const vssm_mlp& s, int64_t rows, bool with_hidden, Arena& arena)
        : width(Scratch::stride_of(s.width)), stride(Scratch::stride_of(s.hidden)) {
        stream = arena.take(rows * width);
        normed = arena.take(rows * width);
        hidden = with_hidden ? arena.take(rows * stride) : nullptr;
        result = arena.take(rows * width);
        pairs = arena.take(rows * pairs_of(s));
        std::fill_n(normed, rows * width, 0.f);  // products read rows up to a multiple of FEW
        if (with_hidden) std::fill_n(hidden, rows * stride, 0.f);
        std::fill_n(pairs, rows * pairs_of(s), 0.f);
    }
};

template <class E>
class Mlp {
  public:
    Mlp(const vssm_mlp& s, const Weights& weights, const Rooms& rooms)
        : s_(s), weights_(weights), rooms_(rooms), x_(s.x, 0, 0), added_(s.added, 0, 0), out_(s.out, 0, 0) {}

    // Rows of the stream for the tokens [first, end), and normalised.
    void enter(int64_t first, int64_t end) const {
        for (int64_t t = first; t < end; ++t) {
            float* stream = rooms_.stream + (t - first) * rooms_.width;
            for (int64_t c = 0; c < s_.width; c += W) {
                const int lanes = lanes_at(c);
                (load(x_.row(t) + c, lanes) + load(added_.row(t) + c, lanes)).store(stream + c);
            }
            weights_.norm.forward(stream, rooms_.normed + (t - first) * rooms_.width);
        }
    }
    // Those panels of GELU(fc1 ...) for so many tokens.
    void make_hidden(int tokens, int64_t first_panel, int64_t end_panel, float* hidden) const {
        const auto of = weights_.fc1.operand(rooms_.normed, rooms_.width, tokens, rooms_.pairs);
        for (int64_t panel = first_panel; panel < end_panel; ++panel) {
            const int64_t at = panel * PANEL;
            weights_.fc1.multiply_one(panel, of, hidden + at, rooms_.stride);
            for (int64_t h = at; h < at + weights_.fc1.panel_width(panel); h += W) {
                const Vec bias = Vec::load(weights_.fc1_bias + h);
                for (int t = 0; t < tokens; ++t) {
                    float* value = hidden + t * rooms_.stride + h;
                    gelu(Vec::load(value) + bias).store(value);
                }
            }
        }
    }
    // Those panels of the output for the tokens [first, end).
    void leave(int64_t first, int64_t end, int64_t first_panel, int64_t end_panel, const float* hidden) const {
        const auto tokens = static_cast<int>(end - first);
        const auto of = weights_.fc2.operand(hidden, rooms_.stride, tokens, rooms_.pairs);
        for (int64_t panel = first_panel; panel < end_panel; ++panel) {
            const int64_t at = panel * PANEL, last = std::min(at + weights_.fc2.panel_width(panel), s_.width);
            weights_.fc2.multiply_one(panel, of, rooms_.result + at, rooms_.width);
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t c = at; c < last; c += W) {
                    const int64_t from = t * rooms_.width + c;
                    const Vec result = Vec::load(rooms_.result + from) + Vec::load(weights_.fc2_bias + c);
                    store(Vec::load(rooms_.stream + from) + result, out_.row(first + t) + c, lanes_at(c));
                }
        }
    }

  private:
    int lanes_at(int64_t c) const { return static_cast<int>(std::min<int64_t>(s_.width - c, W)); }

    const vssm_mlp& s_;
    const Weights& weights_;
    const Rooms& rooms_;
    const Rows<E> x_, added_, out_;
};

int64_t pieces(int64_t count, int64_t each) { return (count + each - 1) / each; }

// Rows of a tile: the tiles are as many for every thread, and end in whole groups of tokens.
int64_t tile_of(const vssm_mlp& s) {
    const int64_t most = std::clamp<int64_t>(TILE_VALUES / s.hidden / TOKENS * TOKENS, TOKENS, ROWS);
    const int64_t each = pieces(s.tokens, s.threads);
    return round_up(pieces(each, pieces(each, most)), FEW);
}

template <class E>
int run(const vssm_mlp& s) {
    const bool few = s.tokens <= FEW_TOKENS;
    const int64_t tile = tile_of(s), rows = few ? round_up(s.tokens, TOKENS) : round_up(tile, TOKENS);
    const int64_t stride = Scratch::stride_of(s.hidden);
    thread_local Arena common;
    if (!common.reserve(few ? rows * stride : Weights::size(s, false))) return VSSM_NO_MEMORY;
    float* hidden = few ? common.take(rows * stride) : nullptr;
    std::vector<Weights> shared;
    if (few)
        std::fill_n(hidden, rows * stride, 0.f);
    else
        shared.emplace_back(s, false, common);
    bool enough = true;
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        const Team team;
        thread_local Arena own;
        if (!own.reserve(Rooms::size(s, rows, !few) + (few ? Weights::size(s, true) : 0))) {
#pragma omp atomic write
            enough = false;
        }
#pragma omp barrier
        if (enough) {
            const Rooms rooms(s, rows, !few, own);
            if (few) {
                Weights weights(s, true, own);
                weights.fill(s, 0, s.parameter_dtype);
                const Mlp<E> mlp(s, weights, rooms);
                const auto share = [&](int64_t panels, int64_t i) { return panels * i / team.size; };
                mlp.enter(0, s.tokens);
                const int64_t into = weights.fc1.panels(), from = weights.fc2.panels();
                mlp.make_hidden(static_cast<int>(s.tokens), share(into, team.self), share(into, team.self + 1), hidden);
#pragma omp barrier
                mlp.leave(0, s.tokens, share(from, team.self), share(from, team.self + 1), hidden);
            } else {
                Weights& weights = shared.front();
#pragma omp for schedule(dynamic, 1)
                for (int64_t part = 0; part < weights.parts(); ++part) weights.fill(s, part, s.parameter_dtype);
                const Mlp<E> mlp(s, weights, rooms);
#pragma omp for schedule(dynamic, 1)
                for (int64_t i = 0; i < pieces(s.tokens, tile); ++i) {
                    const int64_t first = i * tile, end = std::min(first + tile, s.tokens);
                    mlp.enter(first, end);
                    mlp.make_hidden(static_cast<int>(end - first), 0, weights.fc1.panels(), rooms.hidden);
                    mlp.leave(first, end, 0, weights.fc2.panels(), rooms.hidden);
                }
            }
        }
        own.release_if_large();
    }
    common.release_if_large();
    return enough ? VSSM_DONE : VSSM_NO_MEMORY;
}

}  // namespace

int mlp_forward(const vssm_mlp& s) { return s.x.dtype == VSSM_BFLOAT16 ? run<bfloat16>(s) : run<float>(s); }

}  // namespace VISION_SSM_ISA
