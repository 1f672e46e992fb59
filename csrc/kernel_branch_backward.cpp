// The way back through the residual branch of a Vim block, from the gradient of its result to that of the stream. What
// lies between is made again an image at a time: with as many images as threads, each thread takes its own. Threads
// that share an image take tokens of it each in the products and the norm, and channels in between, where they meet
// once for a few tiles: for the sums over channels that the gradients of x_proj's outputs are.
#include "inner_back.h"
#include "norm.h"
#include "team.h"

namespace VISION_SSM_ISA {

namespace {

// The weights outside the scan: in_proj as it is, and both products turned.
struct OuterWeights {
    Norm norm;
    Packed in_proj, from_out, to_stream;

    static int64_t size(const vssm_branch& s) {
        const int64_t C = s.ssm.channels, D = s.width;
        return Norm::size(D) + Packed::size(2 * C, D) + Packed::size(C, D) + Packed::size(D, 2 * C) + 3 * Arena::LINE;
    }
    OuterWeights(const vssm_branch& s, Arena& arena) : norm(s.width, arena) {
        const int64_t C = s.ssm.channels, D = s.width;
        const bool pairs = Packed::takes_pairs(s.ssm.product_dtype);
        in_proj = {D, 2 * C, arena.take(Packed::size(2 * C, D)), pairs};
        from_out = {D, C, arena.take(Packed::size(C, D)), pairs};
        to_stream = {2 * C, D, arena.take(Packed::size(D, 2 * C)), pairs};
    }
    int64_t parts() const { return 1 + in_proj.panels() + from_out.panels() + to_stream.panels(); }
    void fill(const vssm_branch& s, int64_t part) {
        if (part-- == 0) return norm.fill<float>(s.norm, s.eps, s.norm_weight, s.norm_bias);
        const auto *in = static_cast<const float*>(s.in_proj), *out = static_cast<const float*>(s.out_proj);
        if (part < in_proj.panels()) return in_proj.fill(in, part);
        part -= in_proj.panels();
        if (part < from_out.panels()) return from_out.fill_turned(out, part, s.scale);
        to_stream.fill_turned(in, part - from_out.panels(), 1.f);
    }
};

// One image's rows between in_proj and out_proj, with room for whole groups of tokens. What in_proj yields is only made
// again where the forward pass has not kept it.
struct ImageRows {
    int64_t xz_stride, stride;
    float *xz, *dgated;

    static int64_t size(const vssm_branch& s) {
        const int64_t strides = xz_stride_of(s) + Scratch::stride_of(s.ssm.channels);
        return (s.ssm.tokens + TOKENS) * strides + 2 * Arena::LINE;
    }
    ImageRows(const vssm_branch& s, Arena& arena)
        : xz_stride(xz_stride_of(s)), stride(Scratch::stride_of(s.ssm.channels)) {
        xz = arena.take((s.ssm.tokens + TOKENS) * xz_stride);
        dgated = arena.take((s.ssm.tokens + TOKENS) * stride);
    }

  private:
    static int64_t xz_stride_of(const vssm_branch& s) {
        return s.xz.data ? 0 : Scratch::stride_of(2 * s.ssm.channels);
    }
};

// A thread's rows beside the products.
struct Desk {
    int64_t width;
    float* dnormed;  // [ROWS][width]
    float* last;     // rows of an image that do not fill a group of tokens
    float* pairs;    // [ROWS][...]: what a product takes, where it takes pairs

    static int64_t size(const vssm_branch& s) {
        return ROWS * (round_up(s.width, W) + pairs_of(s)) + FEW * longest(s) + 3 * Arena::LINE;
    }
    static int64_t longest(const vssm_branch& s) { return std::max(2 * s.ssm.channels, s.width); }
    static int64_t pairs_of(const vssm_branch& s) {
        return Packed::takes_pairs(s.ssm.product_dtype) ? Packed::pairs_stride(longest(s)) : 0;
    }
    Desk(const vssm_branch& s, Arena& arena) : width(round_up(s.width, W)) {
        dnormed = arena.take(ROWS * width);
        last = arena.take(FEW * longest(s));
        pairs = arena.take(ROWS * pairs_of(s));
        std::fill_n(last, FEW * longest(s), 0.f);
    }

    // out = rows times the matrix; nothing is read beyond the last row.
    void multiply(const Packed& matrix, const float* rows, int64_t stride, int count, float* out,
                  int64_t out_stride) const {
        const int whole = count / FEW * FEW;
        matrix.multiply(rows, stride, whole, out, out_stride, pairs);
        if (whole == count) return;
        for (int t = whole; t < count; ++t)
            std::copy_n(rows + t * stride, matrix.inputs, last + (t - whole) * matrix.inputs);
        matrix.multiply(last, matrix.inputs, count - whole, out + whole * out_stride, out_stride, pairs);
    }
};

// The steps of one image outside the scan.
class OuterBack {
  public:
    OuterBack(const vssm_branch_gradients& g, const OuterWeights& weights, const ImageRows& image_rows, int64_t image)
        : weights_(weights),
          image_rows_(image_rows),
          kept_(g.branch.xz.data != nullptr),
          xz_(kept_ ? Rows<float>(g.branch.xz, image, 0)
                    : Rows<float>({image_rows.xz, 0, 0, image_rows.xz_stride, VSSM_FLOAT32}, 0, 0)),
          stream_(g.stream, image, 0),
          grad_(g.grad, image, 0),
          dstream_(g.dstream, image, 0),
          normed_(g.normed, image, 0),
          dxz_(g.dxz, image, 0) {}

    Inner inner(int64_t channels) const {
        const auto rows = [](float* base, int64_t stride) {
            return Rows<float>({base, 0, 0, stride, VSSM_FLOAT32}, 0, 0);
        };
        return {xz_, rows(xz_.base + channels, xz_.stride), rows(image_rows_.dgated, image_rows_.stride), dxz_,
                rows(dxz_.base + channels, dxz_.stride)};
    }
    // For the tokens [first, end), at most ROWS: what in_proj yields, and the gradient of what out_proj takes.
    void enter(int64_t first, int64_t end, const Desk& desk) const {
        const int count = static_cast<int>(end - first);
        for (int64_t t = first; t < end; ++t) weights_.norm.forward(stream_.row(t), normed_.row(t));
        if (!kept_)
            desk.multiply(weights_.in_proj, normed_.row(first), normed_.stride, count, xz_.row(first), xz_.stride);
        desk.multiply(weights_.from_out, grad_.row(first), grad_.stride, count,
                      image_rows_.dgated + first * image_rows_.stride, image_rows_.stride);
    }
    // For the same tokens, from the gradient of what in_proj yields to that of the stream. `dnorm` [2][D] is added to.
    void leave(int64_t first, int64_t end, const Desk& desk, float* dnorm) const {
        desk.multiply(weights_.to_stream, dxz_.row(first), dxz_.stride, static_cast<int>(end - first), desk.dnormed,
                      desk.width);
        for (int64_t t = first; t < end; ++t)
            weights_.norm.backward(stream_.row(t), desk.dnormed + (t - first) * desk.width, grad_.row(t),
                                   dstream_.row(t), dnorm, dnorm + weights_.norm.width);
    }

  private:
    const OuterWeights& weights_;
    const ImageRows& image_rows_;
    const bool kept_;
    const Rows<float> xz_;
    const Rows<float> stream_, grad_, dstream_, normed_, dxz_;
};

// f(first, end) for pieces of `rows` tokens: all of them, or this thread's.
template <class F>
void over_pieces(int64_t tokens, int64_t rows, bool shared, F&& f) {
    const int64_t pieces = (tokens + rows - 1) / rows;
    const auto piece = [&](int64_t i) { f(i * rows, std::min((i + 1) * rows, tokens)); };
    if (shared) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pieces; ++i) piece(i);
    } else {
        for (int64_t i = 0; i < pieces; ++i) piece(i);
    }
}

// The shares of the sums over channels: [2][tiles][T][width] for every thread. They are in two places by turns: who is
// late still reads one of them.
struct Shares {
    float* data;
    int64_t tiles, width;

    int64_t each() const { return 2 * tiles * T * width; }
    float* at(int64_t thread, int64_t turn, int64_t tile) const {
        return data + thread * each() + (turn * tiles + tile) * T * width;
    }
};

// One image, by one thread or by all of them.
void run_image(const OuterBack& outer, InnerBack& inner, const vssm_ssm& s, const Shares& shares, int64_t together,
               const Desk& desk, float* dnorm, const Team& team, bool shared) {
    const int64_t rows = !shared || s.tokens >= 4 * ROWS * team.size ? ROWS : PIECE;
    over_pieces(s.tokens, rows, shared, [&](int64_t first, int64_t end) { outer.enter(first, end, desk); });
    inner.open();
    int64_t turn = 0;
    for (int64_t k = 0; k < s.directions; ++k) {
        inner.begin(k);
        for (int64_t end = inner.chunks(); end > 0; end -= together, turn ^= 1) {
            const int64_t first = std::max<int64_t>(end - together, 0);
            for (int64_t tile = end - 1; tile >= first; --tile)
                inner.walk(tile, tile - first, shares.at(team.self, turn, tile - first));
            if (shared) {
#pragma omp barrier
            }
            for (int64_t tile = end - 1; tile >= first; --tile)
                inner.leave(tile, tile - first, shares.at(shared ? 0 : team.self, turn, tile - first),
                            shared ? team.size : 1, shares.each());
        }
        inner.end();
    }
    if (shared) {
#pragma omp barrier  // before rows are read that other threads have made channels of
    }
    over_pieces(s.tokens, rows, shared, [&](int64_t first, int64_t end) { outer.leave(first, end, desk, dnorm); });
}

}  // namespace

int branch_backward(const vssm_branch_gradients& g) {
    const vssm_branch& s = g.branch;
    const vssm_ssm& ssm = s.ssm;
    const int64_t blocks = (ssm.channels + W - 1) / W, pairs = Reversed::pairs(ssm);
    const int64_t together = std::max<int64_t>(SHARED_ROWS / (T * Scratch::stride_of(ssm.channels)), 1);
    // As many images as there are threads, or a multiple, are taken one by each; what is left they share.
    const int64_t alone = ssm.batch >= ssm.threads ? ssm.batch / g.groups * g.groups : 0;
    Shares shares{nullptr, together, Bench::width_of(ssm)};
    thread_local Arena common;
    const int64_t images = alone ? ssm.threads : 1;
    if (!common.reserve(ssm.directions * (Parameters::size(ssm) + Reversed::size(ssm)) + OuterWeights::size(s) +
                        images * ImageRows::size(s) + ssm.threads * shares.each() + Arena::LINE))
        return VSSM_NO_MEMORY;
    std::vector<Parameters> parameters;
    std::vector<Reversed> reversed;
    std::vector<ImageRows> image_rows;
    for (int64_t k = 0; k < ssm.directions; ++k) {
        parameters.emplace_back(ssm, common);
        reversed.emplace_back(ssm, common);
    }
    OuterWeights weights(s, common);
    for (int64_t i = 0; i < images; ++i) image_rows.emplace_back(s, common);
    shares.data = common.take(ssm.threads * shares.each());
    std::fill_n(shares.data, ssm.threads * shares.each(), 0.f);
    bool enough = true;
#pragma omp parallel num_threads(ssm.threads)
    {
        const FlushDenormals flush;
        const Team team;
        thread_local Arena own;
        if (!own.reserve(Desk::size(s) + Bench::size(ssm, together))) {
#pragma omp atomic write
            enough = false;
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < weights.parts(); ++i) weights.fill(s, i);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < ssm.directions * pairs; ++i) {
            const int64_t k = i / pairs, pair = i % pairs;
            for (int64_t block = pair * PAIR; block < std::min(blocks, (pair + 1) * PAIR); ++block)
                parameters[static_cast<size_t>(k)].fill<float>(ssm, k, block);
            reversed[static_cast<size_t>(k)].fill(ssm, k, pair);
        }
        if (enough) {
            const Desk desk(s, own);
            float* dnorm = g.norm_parameters + team.self * 2 * s.width;
            const Arena::Mark rest = own.mark();
            const auto run = [&](Bench& bench, int64_t image, int64_t group, int64_t tiles, bool shared) {
                const OuterBack outer(g, weights, image_rows[static_cast<size_t>(shared ? 0 : team.self)], image);
                InnerBack inner(g, parameters, reversed, bench, outer.inner(ssm.channels), image, group);
                run_image(outer, inner, ssm, shares, tiles, desk, dnorm, team, shared);
            };
            if (alone) {
                Bench bench(ssm, 1, 0, blocks, own);
#pragma omp for schedule(static)
                for (int64_t group = 0; group < g.groups; ++group)
                    for (int64_t image = group; image < alone; image += g.groups) run(bench, image, group, 1, false);
            }
            if (alone < ssm.batch) {
                own.rewind(rest);
                Bench bench(ssm, together, std::min(blocks, pairs * team.self / team.size * PAIR),
                            std::min(blocks, pairs * (team.self + 1) / team.size * PAIR), own);
                for (int64_t image = alone; image < ssm.batch; ++image) run(bench, image, 0, together, true);
            }
        }
        own.release_if_large();
    }
    common.release_if_large();
    return enough ? VSSM_DONE : VSSM_NO_MEMORY;
}

}  // namespace VISION_SSM_ISA
