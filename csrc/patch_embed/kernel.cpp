// The first layer of a Vim, out = weight patch + bias + position. Threads share the patches, some of them at a time,
// whose pixels are laid out as rows for a product with the weights.
#include "common/arena.h"
#include "common/gemm.h"
#include "common/threads.h"
#include "include/patch_embed.h"

#include <atomic>

namespace VISION_SSM_ISA {

namespace {

constexpr int64_t TILE_VALUES = int64_t{64} << 10;  // most pixels of a tile: they share a cache with the weights

// What a thread works in.
struct ThreadScratch {
    float *pixels, *embedded, *pairs;  // [rows][pixels of a patch], [rows][outputs], and what a product takes of pairs
    int64_t stride, width;

    static int64_t size(const PackedMatrix& p, int64_t rows) {
        return rows * (row_stride(p.inputs) + p.width() + p.pairs_stride()) + 3 * Arena::LINE;
    }
    ThreadScratch(const PackedMatrix& p, int64_t rows, Arena& arena) : stride(row_stride(p.inputs)), width(p.width()) {
        pixels = arena.take(rows * stride);
        embedded = arena.take(rows * width);
        pairs = arena.take(rows * p.pairs_stride());
        std::fill_n(pixels, rows * stride, 0.f);  // a product reads whole groups of rows
    }
};

template <class E>
class Embedding {
  public:
    Embedding(const vssm_patch_embed& s, const PackedMatrix& weight, const ThreadScratch& scratch)
        : s_(s),
          weight_(weight),
          scratch_(scratch) {}

    // The patches [first, end) of all images, at most the scratch memory's rows.
    void embed(int64_t first, int64_t end) const {
        const int64_t each = s_.rows * s_.columns;
        for (int64_t i = first; i < end; ++i)
            gather(i / each, i % each, scratch_.pixels + (i - first) * scratch_.stride);
        weight_.multiply(scratch_.pixels, scratch_.stride, static_cast<int>(end - first), scratch_.embedded,
                         scratch_.width, scratch_.pairs);
        for (int64_t i = first; i < end; ++i) {
            int64_t token = i % each;
            for (int64_t c = 0; c < s_.classes && s_.places[c] <= token; ++c) ++token;
            const float* embedded = scratch_.embedded + (i - first) * scratch_.width;
            finish(i / each, token, [&](int64_t d, int lanes) {
                const Vec value = Vec::load(embedded + d);
                return s_.bias ? value + load(at(s_.bias) + d, lanes) : value;
            });
        }
    }
    void embed_classes() const {
        for (int64_t image = 0; image < s_.batch; ++image)
            for (int64_t c = 0; c < s_.classes; ++c)
                finish(image, s_.places[c],
                       [&](int64_t d, int lanes) { return load(at(s_.class_rows) + c * s_.embed + d, lanes); });
    }

  private:
    static const E* at(const void* data) { return static_cast<const E*>(data); }

    // The pixels of a patch as a row, in the order of the weights.
    void gather(int64_t image, int64_t patch, float* row) const {
        const int64_t top = patch / s_.columns * s_.stride, left = patch % s_.columns * s_.stride, P = s_.side;
        const int64_t height = std::min(P, s_.height - top), width = std::min(P, s_.width - left);
        for (int64_t channel = 0; channel < s_.channels; ++channel) {
            const E* corner = at(s_.images) + image * s_.batch_stride + channel * s_.channel_stride +
                              top * s_.row_stride + left;
            for (int64_t y = 0; y < P; ++y, row += P) {
                const int64_t there = y < height ? width : 0;
                int64_t x = 0;
                for (; x < there; x += W) {
                    const int lanes = static_cast<int>(std::min<int64_t>(there - x, W));
                    store(load(corner + y * s_.row_stride + x, lanes), row + x, lanes);
                }
                std::fill(row + there, row + P, 0.f);
            }
        }
    }
    // A token of the result: value(d, lanes) and its position.
    template <class F>
    void finish(int64_t image, int64_t token, F&& value) const {
        const E* position = at(s_.positions) + token * s_.embed;
        float* out = Rows<float>(s_.out, image, 0).row(token);
        for (int64_t d = 0; d < s_.embed; d += W) {
            const int lanes = static_cast<int>(std::min<int64_t>(s_.embed - d, W));
            store(value(d, lanes) + load(position + d, lanes), out + d, lanes);
        }
    }

    const vssm_patch_embed& s_;
    const PackedMatrix& weight_;
    const ThreadScratch& scratch_;
};

template <class E>
int run(const vssm_patch_embed& s) {
    const int64_t patches = s.batch * s.rows * s.columns, inputs = s.channels * s.side * s.side;
    const int64_t most = std::clamp<int64_t>(TILE_VALUES / inputs / MR * MR, MR, MC);
    const int64_t each = ceil_div(patches, s.threads);
    const int64_t tile = ceil_div(each, ceil_div(each, most));  // the tiles are as many for every thread
    thread_local Arena common;
    if (!common.reserve(PackedMatrix::size(s.embed, inputs) + Arena::LINE)) return VSSM_NO_MEMORY;
    PackedMatrix weight{inputs, s.embed, common.take(PackedMatrix::size(s.embed, inputs)),
                        PackedMatrix::takes_pairs(s.dtype)};
    std::atomic<bool> enough{true};
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        thread_local Arena own;
        const int64_t rows = round_up(tile, MR);
        if (!own.reserve(ThreadScratch::size(weight, rows))) enough = false;
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < weight.panels(); ++panel)
            weight.pack(static_cast<const E*>(s.weight), panel);
        if (enough) {
            const ThreadScratch scratch(weight, rows, own);
            const Embedding<E> embedding(s, weight, scratch);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < ceil_div(patches, tile); ++i)
                embedding.embed(i * tile, std::min((i + 1) * tile, patches));
#pragma omp single
            embedding.embed_classes();
        }
        own.release_if_large();
    }
    common.release_if_large();
    return enough ? VSSM_DONE : VSSM_NO_MEMORY;
}

}  // namespace

int patch_embed_forward(const vssm_patch_embed& s) {
    return s.dtype == VSSM_BFLOAT16 ? run<bfloat16>(s) : run<float>(s);
}

}  // namespace VISION_SSM_ISA
