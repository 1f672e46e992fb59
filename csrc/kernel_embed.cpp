// The first layer of a Vim. Threads share the patches, some of them at a time, whose pixels are laid out as rows for a
// product with the weights.
#include "embed.h"

#include "memory.h"
#include "product.h"
#include "team.h"

namespace VISION_SSM_ISA {

namespace {

constexpr int64_t TILE_VALUES = int64_t{64} << 10;  // most pixels of a tile: they share a cache with the weights

// What a thread works in.
struct Table {
    float *pixels, *embedded, *pairs;  // [rows][pixels of a patch], [rows][outputs], and what a product takes of pairs
    int64_t stride, width;

    static int64_t size(const Packed& p, int64_t rows) {
        return rows * (Scratch::stride_of(p.inputs) + p.width() + pairs_of(p)) + 3 * Arena::LINE;
    }
    static int64_t pairs_of(const Packed& p) { return p.pairs ? Packed::pairs_stride(p.inputs) : 0; }
    Table(const Packed& p, int64_t rows, Arena& arena) : stride(Scratch::stride_of(p.inputs)), width(p.width()) {
        pixels = arena.take(rows * stride);
        embedded = arena.take(rows * width);
        pairs = arena.take(rows * pairs_of(p));
        std::fill_n(pixels, rows * stride, 0.f);  // a product reads whole groups of rows
    }
};

template <class E>
class Embedding {
  public:
    Embedding(const vssm_embed& s, const Packed& weight, const Table& table) : s_(s), weight_(weight), table_(table) {}

    // The patches [first, end) of all images, at most the table's rows.
    void embed(int64_t first, int64_t end) const {
        const int64_t each = s_.rows * s_.columns;
        for (int64_t i = first; i < end; ++i) gather(i / each, i % each, table_.pixels + (i - first) * table_.stride);
        weight_.multiply(table_.pixels, table_.stride, static_cast<int>(end - first), table_.embedded, table_.width,
                         table_.pairs);
        for (int64_t i = first; i < end; ++i) {
            int64_t token = i % each;
            for (int64_t c = 0; c < s_.classes && s_.places[c] <= token; ++c) ++token;
            const float* embedded = table_.embedded + (i - first) * table_.width;
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

    const vssm_embed& s_;
    const Packed& weight_;
    const Table& table_;
};

int64_t pieces(int64_t count, int64_t each) { return (count + each - 1) / each; }

template <class E>
int run(const vssm_embed& s) {
    const int64_t patches = s.batch * s.rows * s.columns, inputs = s.channels * s.side * s.side;
    const int64_t most = std::clamp<int64_t>(TILE_VALUES / inputs / TOKENS * TOKENS, TOKENS, ROWS);
    const int64_t each = pieces(patches, s.threads), tile = pieces(each, pieces(each, most));  // as many for every thread
    thread_local Arena common;
    if (!common.reserve(Packed::size(s.embed, inputs) + Arena::LINE)) return VSSM_NO_MEMORY;
    Packed weight{inputs, s.embed, common.take(Packed::size(s.embed, inputs)), Packed::takes_pairs(s.dtype)};
    bool enough = true;
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        thread_local Arena own;
        const int64_t rows = round_up(tile, TOKENS);
        if (!own.reserve(Table::size(weight, rows))) {
#pragma omp atomic write
            enough = false;
        }
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < weight.panels(); ++panel)
            weight.fill(static_cast<const E*>(s.weight), panel);
        if (enough) {
            const Table table(weight, rows, own);
            const Embedding<E> embedding(s, weight, table);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < pieces(patches, tile); ++i)
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

int embed_forward(const vssm_embed& s) { return s.dtype == VSSM_BFLOAT16 ? run<bfloat16>(s) : run<float>(s); }

}  // namespace VISION_SSM_ISA
