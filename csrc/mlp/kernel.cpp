// The MLP branch of a block, out = stream + fc2 GELU(fc1 norm(stream)). Threads share the tokens, a tile at a time; or,
// where there are few, the outputs of each product, so that no weight is packed twice.
#include "common/activations.h"
#include "common/arena.h"
#include "common/gemm.h"
#include "common/norm.h"
#include "common/threads.h"
#include "include/mlp.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace VISION_SSM_ISA {

namespace {

constexpr int64_t FEW_TOKENS = 256;
constexpr int64_t TILE_VALUES = int64_t{96} << 10;  // most hidden values of a tile: they share a cache with the weights

// The weights, packed once for all threads or by each as it comes to them.
struct Weights {
    Norm norm;
    PackedMatrix fc1, fc2;
    float *fc1_bias, *fc2_bias;  // up to whole vectors

    static int64_t size(const vssm_mlp& s, bool pack_on_use) {
        const int64_t products = pack_on_use
                                     ? 2 * PackedMatrix::size_with_source()
                                     : PackedMatrix::size(s.hidden, s.width) + PackedMatrix::size(s.width, s.hidden);
        return products + Norm::size(s.width) + round_up(s.hidden, W) + round_up(s.width, W) + 6 * Arena::LINE;
    }
    Weights(const vssm_mlp& s, bool pack_on_use, Arena& arena) : norm(s.width, arena) {
        const auto product = [&](const void* source, int64_t outputs, int64_t inputs) {
            const int64_t floats = pack_on_use ? PackedMatrix::size_with_source() : PackedMatrix::size(outputs, inputs);
            PackedMatrix made{inputs, outputs, arena.take(floats), PackedMatrix::takes_pairs(s.product_dtype)};
            if (pack_on_use) made.source = source;
            made.source_dtype = s.parameter_dtype;
            return made;
        };
        fc1 = product(s.fc1, s.hidden, s.width);
        fc2 = product(s.fc2, s.width, s.hidden);
        fc1_bias = arena.take(round_up(s.hidden, W));
        fc2_bias = arena.take(round_up(s.width, W));
    }
    // Packing is cut into this many independent parts; the first is all but the products.
    int64_t parts() const { return 1 + fc1.panels() + fc2.panels(); }
    template <class P>
    void pack(const vssm_mlp& s, int64_t part) {
        if (part == 0) {
            norm.pack<P>(s.norm, s.eps, s.norm_weight, s.norm_bias);
            pack_bias<P>(s.fc1_bias, s.hidden, fc1_bias);
            pack_bias<P>(s.fc2_bias, s.width, fc2_bias);
        } else if (part <= fc1.panels()) {
            fc1.pack(static_cast<const P*>(s.fc1), part - 1);
        } else {
            fc2.pack(static_cast<const P*>(s.fc2), part - 1 - fc1.panels());
        }
    }
    void pack(const vssm_mlp& s, int64_t part, int32_t dtype) {
        dtype == VSSM_BFLOAT16 ? pack<bfloat16>(s, part) : pack<float>(s, part);
    }

  private:
    template <class P>
    static void pack_bias(const void* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += W)
            load(static_cast<const P*>(from) + i, static_cast<int>(std::min<int64_t>(count - i, W))).store(to + i);
    }
};

// A thread's rows.
struct ThreadScratch {
    int64_t width, stride;  // of rows of C and of H values
    float *stream;  // [rows][width]: x + added
    float *normed;  // [rows][width]
    float *hidden;  // [rows][stride]
    float *result;  // [rows][width]: what fc2 yields
    float *pairs;   // [rows][...]: what a product takes, where it takes pairs

    static int64_t pairs_of(const vssm_mlp& s) {
        return PackedMatrix::pairs_stride(std::max(s.width, s.hidden), s.product_dtype);
    }
    static int64_t size(const vssm_mlp& s, int64_t rows, bool with_hidden) {
        const int64_t width = row_stride(s.width), stride = with_hidden ? row_stride(s.hidden) : 0;
        return rows * (3 * width + stride + pairs_of(s)) + 5 * Arena::LINE;
    }
    ThreadScratch(const vssm_mlp& s, int64_t rows, bool with_hidden, Arena& arena)
        : width(row_stride(s.width)), stride(row_stride(s.hidden)) {
        stream = arena.take(rows * width);
        normed = arena.take(rows * width);
        hidden = with_hidden ? arena.take(rows * stride) : nullptr;
        result = arena.take(rows * width);
        pairs = arena.take(rows * pairs_of(s));
        std::fill_n(normed, rows * width, 0.f);  // products read rows up to a multiple of HALF_MR
        if (with_hidden) std::fill_n(hidden, rows * stride, 0.f);
        std::fill_n(pairs, rows * pairs_of(s), 0.f);
    }
};

template <class E>
class Mlp {
  public:
    Mlp(const vssm_mlp& s, const Weights& weights, const ThreadScratch& scratch)
        : s_(s), weights_(weights), scratch_(scratch), x_(s.x, 0, 0), added_(s.added, 0, 0), out_(s.out, 0, 0) {}

    // Rows of the stream for the tokens [first, end), as they are and normalised.
    void load_and_normalise(int64_t first, int64_t end) const {
        for (int64_t t = first; t < end; ++t) {
            float* stream = scratch_.stream + (t - first) * scratch_.width;
            for (int64_t c = 0; c < s_.width; c += W) {
                const int lanes = lanes_at(c);
                (load(x_.row(t) + c, lanes) + load(added_.row(t) + c, lanes)).store(stream + c);
            }
            weights_.norm.forward(stream, scratch_.normed + (t - first) * scratch_.width);
        }
    }
    // Those panels of GELU(fc1 ...) for so many tokens.
    void project_hidden(int tokens, int64_t first_panel, int64_t end_panel, float* hidden) const {
        const auto of = weights_.fc1.operand(scratch_.normed, scratch_.width, tokens, scratch_.pairs);
        for (int64_t panel = first_panel; panel < end_panel; ++panel) {
            const int64_t at = panel * NR;
            weights_.fc1.multiply_panel(panel, of, hidden + at, scratch_.stride);
            for (int64_t h = at; h < at + weights_.fc1.panel_width(panel); h += W) {
                const Vec bias = Vec::load(weights_.fc1_bias + h);
                for (int t = 0; t < tokens; ++t) {
                    float* value = hidden + t * scratch_.stride + h;
                    gelu(Vec::load(value) + bias).store(value);
                }
            }
        }
    }
    // Those panels of the output for the tokens [first, end).
    void project_out(int64_t first, int64_t end, int64_t first_panel, int64_t end_panel, const float* hidden) const {
        const auto tokens = static_cast<int>(end - first);
        const auto of = weights_.fc2.operand(hidden, scratch_.stride, tokens, scratch_.pairs);
        for (int64_t panel = first_panel; panel < end_panel; ++panel) {
            const int64_t at = panel * NR, last = std::min(at + weights_.fc2.panel_width(panel), s_.width);
            weights_.fc2.multiply_panel(panel, of, scratch_.result + at, scratch_.width);
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t c = at; c < last; c += W) {
                    const int64_t from = t * scratch_.width + c;
                    const Vec result = Vec::load(scratch_.result + from) + Vec::load(weights_.fc2_bias + c);
                    store(Vec::load(scratch_.stream + from) + result, out_.row(first + t) + c, lanes_at(c));
                }
        }
    }

  private:
    int lanes_at(int64_t c) const { return static_cast<int>(std::min<int64_t>(s_.width - c, W)); }

    const vssm_mlp& s_;
    const Weights& weights_;
    const ThreadScratch& scratch_;
    const Rows<E> x_, added_, out_;
};

// Rows of a tile: the tiles are as many for every thread, and end in whole groups of tokens.
int64_t tile_of(const vssm_mlp& s) {
    const int64_t most = std::clamp<int64_t>(TILE_VALUES / s.hidden / MR * MR, MR, MC);
    const int64_t each = ceil_div(s.tokens, s.threads);
    return round_up(ceil_div(each, ceil_div(each, most)), HALF_MR);
}

template <class E>
int run(const vssm_mlp& s) {
    const bool few = s.tokens <= FEW_TOKENS;
    const int64_t tile = tile_of(s), rows = few ? round_up(s.tokens, MR) : round_up(tile, MR);
    const int64_t stride = row_stride(s.hidden);
    thread_local Arena common;
    if (!common.reserve(few ? rows * stride : Weights::size(s, false))) return VSSM_NO_MEMORY;
    float* hidden = few ? common.take(rows * stride) : nullptr;
    std::vector<Weights> shared;
    if (few)
        std::fill_n(hidden, rows * stride, 0.f);
    else
        shared.emplace_back(s, false, common);
    std::atomic<bool> enough{true};
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        thread_local Arena own;
        if (!own.reserve(ThreadScratch::size(s, rows, !few) + (few ? Weights::size(s, true) : 0))) enough = false;
#pragma omp barrier
        if (enough) {
            const ThreadScratch scratch(s, rows, !few, own);
            if (few) {
                Weights weights(s, true, own);
                weights.pack(s, 0, s.parameter_dtype);
                const Mlp<E> mlp(s, weights, scratch);
                const auto share = [&](int64_t panels, int64_t i) { return panels * i / team.size; };
                mlp.load_and_normalise(0, s.tokens);
                const int64_t into = weights.fc1.panels(), from = weights.fc2.panels();
                mlp.project_hidden(static_cast<int>(s.tokens), share(into, team.index), share(into, team.index + 1),
                                   hidden);
#pragma omp barrier
                mlp.project_out(0, s.tokens, share(from, team.index), share(from, team.index + 1), hidden);
            } else {
                Weights& weights = shared.front();
#pragma omp for schedule(dynamic, 1)
                for (int64_t part = 0; part < weights.parts(); ++part) weights.pack(s, part, s.parameter_dtype);
                const Mlp<E> mlp(s, weights, scratch);
#pragma omp for schedule(dynamic, 1)
                for (int64_t i = 0; i < ceil_div(s.tokens, tile); ++i) {
                    const int64_t first = i * tile, end = std::min(first + tile, s.tokens);
                    mlp.load_and_normalise(first, end);
                    mlp.project_hidden(static_cast<int>(end - first), 0, weights.fc1.panels(), scratch.hidden);
                    mlp.project_out(first, end, 0, weights.fc2.panels(), scratch.hidden);
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
