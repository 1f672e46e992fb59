// The way back through a Vim block, from the gradient of its result to that of the stream. What lies between is made
// again an image at a time: with as many images as threads, each thread takes its own. Threads that share an image take
// tokens of it each in the products and the norm, and channels in between, where they meet at one barrier for a few
// tiles: for the sums over channels that the gradients of x_proj's outputs are.
//
//   dy = scale * out_proj^T dout     (dx, dz) = back through the SSM, see inner_backward.h
//   dstream = dout + norm's adjoint(in_proj^T (dx, dz))
#include "common/arena.h"
#include "common/gemm.h"
#include "common/norm.h"
#include "common/threads.h"
#include "vim_block/inner_backward.h"

#include <atomic>
#include <vector>

namespace VISION_SSM_ISA {

namespace {

// The weights outside the scan: in_proj as it is, and both matrices transposed.
struct BackwardWeights {
    Norm norm;
    PackedMatrix in_proj, from_out, to_stream;

    static int64_t size(const vssm_vim_block& s) {
        const int64_t C = s.ssm.channels, D = s.width;
        return Norm::size(D) + PackedMatrix::size(2 * C, D) + PackedMatrix::size(C, D) + PackedMatrix::size(D, 2 * C) +
               3 * Arena::LINE;
    }
    BackwardWeights(const vssm_vim_block& s, Arena& arena) : norm(s.width, arena) {
        const int64_t C = s.ssm.channels, D = s.width;
        const bool pairs = PackedMatrix::takes_pairs(s.ssm.product_dtype);
        in_proj = {D, 2 * C, arena.take(PackedMatrix::size(2 * C, D)), pairs};
        from_out = {D, C, arena.take(PackedMatrix::size(C, D)), pairs};
        to_stream = {2 * C, D, arena.take(PackedMatrix::size(D, 2 * C)), pairs};
    }
    int64_t parts() const { return 1 + in_proj.panels() + from_out.panels() + to_stream.panels(); }
    void pack(const vssm_vim_block& s, int64_t part) {
        if (part-- == 0) return norm.pack<float>(s.norm, s.eps, s.norm_weight, s.norm_bias);
        const auto *in = static_cast<const float*>(s.in_proj), *out = static_cast<const float*>(s.out_proj);
        if (part < in_proj.panels()) return in_proj.pack(in, part);
        part -= in_proj.panels();
        if (part < from_out.panels()) return from_out.pack_transposed(out, part, s.scale);
        to_stream.pack_transposed(in, part - from_out.panels(), 1.f);
    }
};

// One image's rows between in_proj and out_proj, up to whole groups of tokens. What in_proj yields is only made
// again where the forward pass has not kept it.
struct ImageRows {
    int64_t xz_stride, stride;
    float *xz, *dgated;

    static int64_t size(const vssm_vim_block& s) {
        const int64_t strides = xz_stride_of(s) + row_stride(s.ssm.channels);
        return (s.ssm.tokens + MR) * strides + 2 * Arena::LINE;
    }
    ImageRows(const vssm_vim_block& s, Arena& arena)
        : xz_stride(xz_stride_of(s)), stride(row_stride(s.ssm.channels)) {
        xz = arena.take((s.ssm.tokens + MR) * xz_stride);
        dgated = arena.take((s.ssm.tokens + MR) * stride);
    }

  private:
    static int64_t xz_stride_of(const vssm_vim_block& s) {
        return s.xz.data ? 0 : row_stride(2 * s.ssm.channels);
    }
};

// What a thread's products write and need besides.
struct ProductScratch {
    int64_t width;
    float* dnormed;  // [MC][width]
    float* last;     // rows of an image that do not fill a group of tokens
    float* pairs;    // [MC][...]: what a product takes, where it takes pairs

    static int64_t size(const vssm_vim_block& s) {
        return MC * (round_up(s.width, W) + pairs_of(s)) + HALF_MR * longest(s) + 3 * Arena::LINE;
    }
    static int64_t longest(const vssm_vim_block& s) { return std::max(2 * s.ssm.channels, s.width); }
    static int64_t pairs_of(const vssm_vim_block& s) {
        return PackedMatrix::pairs_stride(longest(s), s.ssm.product_dtype);
    }
    ProductScratch(const vssm_vim_block& s, Arena& arena) : width(round_up(s.width, W)) {
        dnormed = arena.take(MC * width);
        last = arena.take(HALF_MR * longest(s));
        pairs = arena.take(MC * pairs_of(s));
        std::fill_n(last, HALF_MR * longest(s), 0.f);
    }

    // out = rows times the matrix; nothing is read beyond the last row.
    void multiply(const PackedMatrix& matrix, const float* rows, int64_t stride, int count, float* out,
                  int64_t out_stride) const {
        const int whole = count / HALF_MR * HALF_MR;
        matrix.multiply(rows, stride, whole, out, out_stride, pairs);
        if (whole == count) return;
        for (int t = whole; t < count; ++t)
            std::copy_n(rows + t * stride, matrix.inputs, last + (t - whole) * matrix.inputs);
        matrix.multiply(last, matrix.inputs, count - whole, out + whole * out_stride, out_stride, pairs);
    }
};

// The steps of one image outside the scan.
class OuterBackward {
  public:
    OuterBackward(const vssm_vim_block_gradients& g, const BackwardWeights& weights, const ImageRows& image_rows,
                  int64_t image)
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

    InnerRows inner(int64_t channels) const {
        const auto rows = [](float* base, int64_t stride) {
            return Rows<float>({base, 0, 0, stride, VSSM_FLOAT32}, 0, 0);
        };
        return {xz_, rows(xz_.base + channels, xz_.stride), rows(image_rows_.dgated, image_rows_.stride), dxz_,
                rows(dxz_.base + channels, dxz_.stride)};
    }
    // For the tokens [first, end), at most MC: what in_proj yields, and the gradient of what out_proj takes.
    void back_through_out_proj(int64_t first, int64_t end, const ProductScratch& products) const {
        const int count = static_cast<int>(end - first);
        for (int64_t t = first; t < end; ++t) weights_.norm.forward(stream_.row(t), normed_.row(t));
        if (!kept_)
            products.multiply(weights_.in_proj, normed_.row(first), normed_.stride, count, xz_.row(first), xz_.stride);
        products.multiply(weights_.from_out, grad_.row(first), grad_.stride, count,
                          image_rows_.dgated + first * image_rows_.stride, image_rows_.stride);
    }
    // For the same tokens, from the gradient of what in_proj yields to that of the stream. `dnorm` [2][D] is added to.
    void back_through_in_proj(int64_t first, int64_t end, const ProductScratch& products, float* dnorm) const {
        products.multiply(weights_.to_stream, dxz_.row(first), dxz_.stride, static_cast<int>(end - first),
                          products.dnormed, products.width);
        for (int64_t t = first; t < end; ++t)
            weights_.norm.backward(stream_.row(t), products.dnormed + (t - first) * products.width, grad_.row(t),
                                   dstream_.row(t), dnorm, dnorm + weights_.norm.width);
    }

  private:
    const BackwardWeights& weights_;
    const ImageRows& image_rows_;
    const bool kept_;
    const Rows<float> xz_;
    const Rows<float> stream_, grad_, dstream_, normed_, dxz_;
};

// f(first, end) for pieces of `rows` tokens: all of them, or this thread's.
template <class F>
void over_pieces(int64_t tokens, int64_t rows, bool shared, F&& f) {
    const int64_t pieces = ceil_div(tokens, rows);
    const auto piece = [&](int64_t i) { f(i * rows, std::min((i + 1) * rows, tokens)); };
    if (shared) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pieces; ++i) piece(i);
    } else {
        for (int64_t i = 0; i < pieces; ++i) piece(i);
    }
}

// The threads' parts of the sums over channels: [2][tiles][T][width] for every thread. They are in two places by turns:
// who is late still reads one of them.
struct PartialSums {
    float* data;
    int64_t tiles, width;

    int64_t each() const { return 2 * tiles * T * width; }
    float* at(int64_t thread, int64_t turn, int64_t tile) const {
        return data + thread * each() + (turn * tiles + tile) * T * width;
    }
};

// One image, by one thread or by all of them.
void run_image(const OuterBackward& outer, InnerBackward& inner, const vssm_ssm& s, const PartialSums& partial,
               int64_t together, const ProductScratch& products, float* dnorm, const ThreadTeam& team, bool shared) {
    const int64_t rows = !shared || s.tokens >= 4 * MC * team.size ? MC : SUBTILE;
    over_pieces(s.tokens, rows, shared,
                [&](int64_t first, int64_t end) { outer.back_through_out_proj(first, end, products); });
    inner.back_through_gate();
    int64_t turn = 0;
    for (int64_t k = 0; k < s.directions; ++k) {
        inner.begin_direction(k);
        for (int64_t end = inner.chunks(); end > 0; end -= together, turn ^= 1) {
            const int64_t first = std::max<int64_t>(end - together, 0);
            for (int64_t tile = end - 1; tile >= first; --tile)
                inner.walk_back(tile, tile - first, partial.at(team.index, turn, tile - first));
            if (shared) {
#pragma omp barrier
            }
            for (int64_t tile = end - 1; tile >= first; --tile)
                inner.back_through_projections(tile, tile - first,
                                               partial.at(shared ? 0 : team.index, turn, tile - first),
                                               shared ? team.size : 1, partial.each());
        }
        inner.end_direction();
    }
    if (shared) {
#pragma omp barrier  // before rows are read that other threads have made channels of
    }
    over_pieces(s.tokens, rows, shared,
                [&](int64_t first, int64_t end) { outer.back_through_in_proj(first, end, products, dnorm); });
}

}  // namespace

int vim_block_backward(const vssm_vim_block_gradients& g) {
    const vssm_vim_block& s = g.branch;
    const vssm_ssm& ssm = s.ssm;
    const int64_t blocks = ceil_div(ssm.channels, W), pairs = BackwardProjections::pairs(ssm);
    const int64_t together = std::max<int64_t>(SHARED_FLOATS / (T * row_stride(ssm.channels)), 1);
    // As many images as there are threads, or a multiple, are taken one by each; what is left they share.
    const int64_t alone = ssm.batch >= ssm.threads ? ssm.batch / g.groups * g.groups : 0;
    PartialSums partial{nullptr, together, InnerScratch::width_of(ssm)};
    thread_local Arena common;
    const int64_t images = alone ? ssm.threads : 1;
    if (!common.reserve(ssm.directions * (PackedParameters::size(ssm) + BackwardProjections::size(ssm)) +
                        BackwardWeights::size(s) + images * ImageRows::size(s) + ssm.threads * partial.each() +
                        Arena::LINE))
        return VSSM_NO_MEMORY;
    std::vector<PackedParameters> parameters;
    std::vector<BackwardProjections> projections;
    std::vector<ImageRows> image_rows;
    for (int64_t k = 0; k < ssm.directions; ++k) {
        parameters.emplace_back(ssm, common);
        projections.emplace_back(ssm, common);
    }
    BackwardWeights weights(s, common);
    for (int64_t i = 0; i < images; ++i) image_rows.emplace_back(s, common);
    partial.data = common.take(ssm.threads * partial.each());
    std::fill_n(partial.data, ssm.threads * partial.each(), 0.f);
    std::atomic<bool> enough{true};
#pragma omp parallel num_threads(ssm.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        thread_local Arena own;
        if (!own.reserve(ProductScratch::size(s) + InnerScratch::size(ssm, together))) enough = false;
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < weights.parts(); ++i) weights.pack(s, i);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < ssm.directions * pairs; ++i) {
            const int64_t k = i / pairs, pair = i % pairs;
            for (int64_t block = pair * PAIR; block < std::min(blocks, (pair + 1) * PAIR); ++block)
                parameters[static_cast<size_t>(k)].pack<float>(ssm, k, block);
            projections[static_cast<size_t>(k)].pack(ssm, k, pair);
        }
        if (enough) {
            const ProductScratch products(s, own);
            float* dnorm = g.norm_parameters + team.index * 2 * s.width;
            const Arena::Mark rest = own.mark();
            const auto run = [&](InnerScratch& scratch, int64_t image, int64_t group, int64_t tiles, bool shared) {
                const OuterBackward outer(g, weights, image_rows[static_cast<size_t>(shared ? 0 : team.index)], image);
                InnerBackward inner(g, parameters, projections, scratch, outer.inner(ssm.channels), image, group);
                run_image(outer, inner, ssm, partial, tiles, products, dnorm, team, shared);
            };
            if (alone) {
                InnerScratch scratch(ssm, 1, 0, blocks, own);
#pragma omp for schedule(static)
                for (int64_t group = 0; group < g.groups; ++group)
                    for (int64_t image = group; image < alone; image += g.groups) run(scratch, image, group, 1, false);
            }
            if (alone < ssm.batch) {
                own.rewind(rest);
                InnerScratch scratch(ssm, together, std::min(blocks, pairs * team.index / team.size * PAIR),
                                     std::min(blocks, pairs * (team.index + 1) / team.size * PAIR), own);
                for (int64_t image = alone; image < ssm.batch; ++image) run(scratch, image, 0, together, true);
            }
        }
        own.release_if_large();
    }
    common.release_if_large();
    return enough ? VSSM_DONE : VSSM_NO_MEMORY;
}

}  // namespace VISION_SSM_ISA
