// The selective SSM in one pass, by the equations of include/ssm.h. Two steps for every tile of tokens: make its rows
// of u and project them, then advance the states of its channels from both. With as many images as threads, each thread
// does both steps for its own image, a tile at a time. With fewer, the threads share an image and take a few tiles at a
// time: the first step is split by tokens, the second by channels, and what passes from one to the other stays in
// cache.
#include "common/threads.h"
#include "ssm/direction.h"

namespace VISION_SSM_ISA {

namespace {

template <class E>
int forward(const vssm_ssm& s) {
    const bool share = s.batch < s.threads;
    const int scratches = share ? 1 : s.threads;
    const int64_t together = std::max<int64_t>(SHARED_FLOATS / (T * row_stride(s.channels)), 1);
    const int64_t tiles_each = share ? together : 1;
    thread_local Arena arena;
    if (!arena.reserve(s.directions * PackedParameters::size(s) + scratches * TileScratch::size(s, tiles_each)))
        return VSSM_NO_MEMORY;
    std::vector<PackedParameters> parameters;
    for (int64_t k = 0; k < s.directions; ++k) parameters.emplace_back(s, arena);
    std::vector<TileScratch> scratch;
    for (int i = 0; i < scratches; ++i) scratch.emplace_back(s, tiles_each, arena);
    const int64_t blocks = ceil_div(s.channels, W);
    const auto pass = [&](int64_t image, int64_t k, size_t with) {
        const bool each = s.cover == VSSM_COVER_EACH;
        const Epilogue<E> epilogue{Rows<E>(s.y, image, 0), Rows<E>(s.z, image, 0), Rows<float>(s.sum, image, 0),
                                   each && k + 1 < s.directions, each && k > 0, s.z.data != nullptr};
        return DirectionPass<E>(s, parameters[static_cast<size_t>(k)], k, s.walks[k], 0, scratch[with],
                                Rows<E>(s.x, image, 0), epilogue);
    };
#pragma omp parallel num_threads(s.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        pack_parameters(s, parameters);
        if (share) {
            for (int64_t i = 0; i < s.batch * s.directions; ++i) {
                DirectionPass<E> mine = pass(i / s.directions, i % s.directions, 0);
                mine.take_blocks(blocks * team.index / team.size, blocks * (team.index + 1) / team.size);
                for (int64_t first = 0; first < mine.tiles(); first += together) {
                    const int64_t count = std::min(mine.tiles() - first, together);
#pragma omp for schedule(dynamic, 1)
                    for (int64_t subtile = 0; subtile < count * (T / SUBTILE); ++subtile) {
                        const int64_t slot = subtile / (T / SUBTILE);
                        mine.project_subtile(first + slot, static_cast<int>(subtile % (T / SUBTILE)), slot);
                    }
                    for (int64_t slot = 0; slot < count; ++slot) mine.advance_tile(first + slot, slot);
#pragma omp barrier  // before the rows are made anew
                }
            }
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t image = 0; image < s.batch; ++image)
                for (int64_t k = 0; k < s.directions; ++k) {
                    DirectionPass<E> mine = pass(image, k, static_cast<size_t>(team.index));
                    mine.take_blocks(0, blocks);
                    for (int64_t tile = 0; tile < mine.tiles(); ++tile) {
                        for (int subtile = 0; subtile < T / SUBTILE; ++subtile) mine.project_subtile(tile, subtile, 0);
                        mine.advance_tile(tile, 0);
                    }
                }
        }
    }
    return VSSM_DONE;
}

}  // namespace

int ssm_forward(const vssm_ssm& s) { return s.x.dtype == VSSM_BFLOAT16 ? forward<bfloat16>(s) : forward<float>(s); }

}  // namespace VISION_SSM_ISA
