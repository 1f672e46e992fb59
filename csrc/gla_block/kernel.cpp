// A block of gated linear attention, by the equations of include/gla_block.h. An image goes through in three steps, of
// which the threads share tiles of tokens, ranges of the values of heads, and tiles again; where there are images
// enough, each thread takes images of its own.
#include "common/threads.h"
#include "gla/attend.h"
#include "gla_block/tile.h"

#include <vector>

namespace VISION_SSM_ISA {

namespace {

constexpr int64_t TILE_VALUES = int64_t{96} << 10;  // most hidden values of a tile: they share a cache with the weights

// The threads that share an image.
struct Sharing {
    int64_t index, size;

    template <class F>
    void each_of(int64_t count, F&& f) const {
        for (int64_t i = count * index / size; i < count * (index + 1) / size; ++i) f(i);
    }
    void wait_for_others() const {
        if (size > 1) {
#pragma omp barrier
        }
    }
};

// Rows of a tile: the tiles are as many for every thread, and end in whole groups of tokens.
int64_t tile_of(const vssm_gla_block& s, int64_t sharing) {
    const int64_t most = std::clamp<int64_t>(TILE_VALUES / s.hidden / MR * MR, MR, MC);
    const int64_t each = ceil_div(s.height * s.width, sharing);
    return round_up(ceil_div(each, ceil_div(each, most)), HALF_MR);
}

// The recurrence on an image's buffers, along the tokens and back.
class Recurrence {
  public:
    Recurrence(const vssm_gla_block& s, const GlaBlockBuffers& buffers, int64_t sharing) {
        const int64_t tokens = s.height * s.width;
        walks_[0] = {0, tokens, 1, 0, tokens, 0, 0, 1, 0};
        walks_[1] = {tokens - 1, tokens, -1, 0, tokens, 0, tokens - 1, -1, 0};
        const auto rows = [](float* data, int64_t direction, int64_t stride) {
            return vssm_tensor{data, 0, direction, stride, VSSM_FLOAT32};
        };
        const int64_t values = s.channels / s.heads, keys = values / 2;
        gla_.batch = 1;
        gla_.directions = 2;
        gla_.tokens = tokens;
        gla_.heads = s.heads;
        gla_.keys = keys;
        gla_.values = values;
        gla_.groups = sharing == 1 ? 1 : std::min(ceil_div(values, 2 * W), ceil_div(2 * sharing, s.heads));
        gla_.merge = 1;
        gla_.cover = VSSM_COVER_EACH;
        gla_.scale = s.scale;
        gla_.walks = walks_;
        gla_.q = rows(buffers.qkv, 0, buffers.qkv_stride);
        gla_.k = rows(buffers.qkv + s.heads * keys, 0, buffers.qkv_stride);
        gla_.v = rows(buffers.qkv + 2 * s.heads * keys, 0, buffers.qkv_stride);
        gla_.gates = rows(buffers.gates, s.heads * keys, buffers.stride);
        gla_.y = rows(buffers.normed, 0, buffers.stride);
    }
    int64_t tasks() const { return gla_.heads * gla_.groups; }
    void run(int64_t task) const {
        const ValueRange range(gla_, task % gla_.groups);
        if (range.width > 0) attend<float>(gla_, 0, task / gla_.groups, range);
    }

  private:
    vssm_gla gla_{};
    vssm_walk walks_[2];
};

template <class E>
void run_image(const vssm_gla_block& s, const GlaBlockWeights& weights, const GlaBlockBuffers& buffers,
               const GlaBlockScratch& scratch, int64_t image, const Sharing& threads) {
    const GlaBlockTile<E> block(s, weights, buffers, scratch, image);
    const Recurrence recurrence(s, buffers, threads.size);
    const int64_t tokens = s.height * s.width, tile = tile_of(s, threads.size), tiles = ceil_div(tokens, tile);
    const auto each_tile = [&](auto&& step) {
        threads.each_of(tiles, [&](int64_t i) { step(i * tile, std::min((i + 1) * tile, tokens)); });
        threads.wait_for_others();
    };
    each_tile([&](int64_t first, int64_t end) { block.normalise(first, end); });
    each_tile([&](int64_t first, int64_t end) { block.before_recurrence(first, end); });
    threads.each_of(recurrence.tasks(), [&](int64_t task) { recurrence.run(task); });
    threads.wait_for_others();
    each_tile([&](int64_t first, int64_t end) { block.after_recurrence(first, end); });
}

template <class E>
int run(const vssm_gla_block& s) {
    const bool share = s.batch < s.threads;
    const int64_t at_once = share ? 1 : s.threads;
    thread_local Arena arena;
    if (!arena.reserve(GlaBlockWeights::size(s) + at_once * GlaBlockBuffers::size(s) +
                       s.threads * GlaBlockScratch::size(s, MC)))
        return VSSM_NO_MEMORY;
    GlaBlockWeights weights(s, arena);
    std::vector<GlaBlockBuffers> buffers;
    std::vector<GlaBlockScratch> scratch;
    for (int64_t i = 0; i < at_once; ++i) buffers.emplace_back(s, arena);
    for (int64_t i = 0; i < s.threads; ++i) scratch.emplace_back(s, MC, arena);
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        const auto index = static_cast<size_t>(team.index);
#pragma omp for schedule(dynamic, 1)
        for (int64_t part = 0; part < weights.parts(); ++part) weights.pack(s, part);
        if (share) {
            for (int64_t image = 0; image < s.batch; ++image)
                run_image<E>(s, weights, buffers[0], scratch[index], image, {team.index, team.size});
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t image = 0; image < s.batch; ++image)
                run_image<E>(s, weights, buffers[index], scratch[index], image, {0, 1});
        }
    }
    arena.release_if_large();
    return VSSM_DONE;
}

}  // namespace

int gla_block_forward(const vssm_gla_block& s) { return s.x.dtype == VSSM_BFLOAT16 ? run<bfloat16>(s) : run<float>(s); }

}  // namespace VISION_SSM_ISA
