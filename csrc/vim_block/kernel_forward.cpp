// Vim blocks, stream += scale * gamma * out_proj SSM(in_proj norm(stream)), one after the other, in one call. Threads
// share the work as in ssm/kernel.cpp, but two of them on one image take a direction each; see schedules.h.
#include "vim_block/schedules.h"

#include <numeric>

namespace VISION_SSM_ISA {

namespace {

// What a thread needs soon that walks direction k of the next block, if there is any: of this block what its products
// do not fetch themselves, then of that one.
PrefetchQueue weights_to_come(const BlockWeights& weights, const vssm_vim_block* next, int64_t k) {
    PrefetchQueue queue;
    if (weights.pack_on_use)
        for (const PackedMatrix* p : {&weights.gate_proj, &weights.out_proj})
            queue.add(p->source_panel(0), p->panel_bytes());
    if (!next) return queue;
    const vssm_ssm& ssm = next->ssm;
    const int64_t element = ssm.parameter_dtype == VSSM_BFLOAT16 ? 2 : 4, set = ssm.projections == 1 ? 0 : k;
    const auto add = [&](const void* data, int64_t at, int64_t count) {
        queue.add(static_cast<const char*>(data) + at * count * element, count * element);
    };
    add(ssm.dt_proj, set, ssm.channels * ssm.rank);
    add(ssm.a_log, k, ssm.channels * ssm.states);
    add(ssm.x_proj, set, (ssm.rank + 2 * ssm.states) * ssm.channels);
    if (weights.pack_on_use) {
        queue.add(next->in_proj, weights.hidden_proj.panel_bytes());
    } else {
        add(next->in_proj, 0, 2 * ssm.channels * next->width);
        queue.finish_within(ssm.tokens * ceil_div(ssm.channels, W));
    }
    return queue;
}

// What all blocks use in turn.
struct Workspace {
    bool share, pair;  // whether threads share an image, and whether they take a direction each
    bool pack_on_use;  // whether a product takes all tokens of a thread at once
    int64_t tiles_each;
    std::vector<PackedParameters> parameters;
    std::vector<TileScratch> tiles;
    std::vector<ImageBuffers> images;
    std::vector<BlockScratch> scratch;
    std::vector<BlockWeights> weights;
    std::vector<int64_t> slots;
    Progress progress[2];

    explicit Workspace(const vssm_vim_block& s)
        : share(s.ssm.batch < s.ssm.threads),
          pair(share && s.ssm.threads == 2 && mirrored(s.ssm)),
          pack_on_use(pair && ceil_div(s.ssm.tokens, 2) <= HALF_IMAGE_ROWS),
          tiles_each(share && !pair ? std::max<int64_t>(SHARED_FLOATS / (T * row_stride(s.ssm.channels)), 1) : 1),
          slots(static_cast<size_t>(std::max<int64_t>(tiles_each * T, HALF_IMAGE_ROWS))) {
        std::iota(slots.begin(), slots.end(), 0);
    }
    // Take memory for everything here; the arena holds `more` floats besides.
    bool allocate(const vssm_vim_block& s, int64_t more, Arena& arena) {
        const vssm_ssm& ssm = s.ssm;
        const int64_t at_once = share ? 1 : ssm.threads, teams = pair ? 2 : at_once, sets = pair ? 2 : 1;
        const int64_t gate_tiles = pack_on_use ? HALF_IMAGE_ROWS / T : tiles_each;
        const int rows = pack_on_use ? HALF_IMAGE_ROWS : MC;
        if (!arena.reserve(ssm.directions * PackedParameters::size(ssm) + sets * BlockWeights::size(s, pack_on_use) +
                           teams * TileScratch::size(ssm, tiles_each) + at_once * ImageBuffers::size(ssm) +
                           ssm.threads * BlockScratch::size(s, gate_tiles, rows) + more))
            return false;
        for (int64_t k = 0; k < ssm.directions; ++k) parameters.emplace_back(ssm, arena);
        for (int64_t i = 0; i < teams; ++i) tiles.emplace_back(ssm, tiles_each, arena);
        for (int64_t i = 0; i < at_once; ++i) images.emplace_back(ssm, arena);
        for (int64_t i = 0; i < ssm.threads; ++i) scratch.emplace_back(s, gate_tiles, rows, arena);
        for (int64_t i = 0; i < sets; ++i) weights.emplace_back(s, pack_on_use, arena);
        return true;
    }
};

template <class F>
void with_parameter_type(const vssm_vim_block& s, F&& f) {
    if (s.ssm.parameter_dtype == VSSM_BFLOAT16)
        f(bfloat16{});
    else
        f(float{});
}

// One image by two threads. Each packs for itself what it needs of the weights: to fetch from the other core what
// that one packed, and to take the lines back for the next block, costs more.
void run_pair(const vssm_vim_block& s, int64_t position, const vssm_vim_block* next, const vssm_tensor& stream,
              const vssm_tensor& out, Workspace& w, const ThreadTeam& team) {
    const vssm_ssm& ssm = s.ssm;
    const auto index = static_cast<size_t>(team.index);
    const int64_t k = (team.index + position) % 2;
    BlockWeights& weights = w.weights[index];
    PackedParameters& parameters = w.parameters[index];
    with_parameter_type(s, [&](auto p) {
        using P = decltype(p);
        for (int64_t part = 0; part < weights.parts(); ++part) weights.pack<P>(s, part);
        for (int64_t part = 0; part < parameters.parts(ssm); ++part) parameters.pack<P>(ssm, k, part);
    });
    PrefetchQueue queue = weights_to_come(weights, next, 1 - k);
    PeerSync peer(w.progress[index], w.progress[1 - index], position);
    const VimBlock block(s, stream, out, weights, w.images[0], 0);
    run_mirrored({block, ssm, w.images[0], w.tiles[index], w.scratch[index], w.slots.data()}, parameters, k, queue,
                 peer);
}

// One block by any team.
void run_team(const vssm_vim_block& s, const vssm_tensor& stream, const vssm_tensor& out, Workspace& w,
              const ThreadTeam& team) {
    const vssm_ssm& ssm = s.ssm;
    const auto index = static_cast<size_t>(team.index);
    BlockWeights& weights = w.weights[0];
    with_parameter_type(s, [&](auto p) {
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t part = 0; part < weights.parts(); ++part) weights.pack<decltype(p)>(s, part);
    });
    pack_parameters(ssm, w.parameters);
    if (w.share) {
        for (int64_t image = 0; image < ssm.batch; ++image) {
            const VimBlock block(s, stream, out, weights, w.images[0], image);
            run_shared({block, ssm, w.images[0], w.tiles[0], w.scratch[0], w.slots.data()}, w.parameters,
                       w.scratch[index], w.tiles_each, team);
        }
    } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t image = 0; image < ssm.batch; ++image) {
            const VimBlock block(s, stream, out, weights, w.images[index], image);
            run_alone({block, ssm, w.images[index], w.tiles[index], w.scratch[index], w.slots.data()}, w.parameters);
        }
    }
}

// The chosen rows of the last result, normalised: few enough for one thread.
void normalise_rows(const vssm_vim_blocks& blocks, Arena& arena) {
    const vssm_vim_block& s = *blocks.branches[0];
    if (!blocks.chosen) return;
    Norm norm(s.width, arena);
    with_parameter_type(s, [&](auto p) {
        norm.pack<decltype(p)>(blocks.norm, blocks.eps, blocks.norm_weight, blocks.norm_bias);
    });
    for (int64_t image = 0; image < blocks.batch; ++image)
        for (int64_t i = 0; i < blocks.chosen; ++i)
            norm.forward(Rows<float>(blocks.out, image, 0).row(blocks.rows[i]),
                         Rows<float>(blocks.normed, image, 0).row(i));
}

}  // namespace

int vim_blocks_forward(const vssm_vim_blocks& blocks) {
    const auto block = [&](int64_t i) {
        vssm_vim_block s = *blocks.branches[i];
        s.ssm.batch = blocks.batch;
        s.ssm.threads = blocks.threads;
        return s;
    };
    const vssm_vim_block first = block(0);
    thread_local Arena arena;
    Workspace workspace(first);
    if (!workspace.allocate(first, Norm::size(first.width), arena)) return VSSM_NO_MEMORY;
#pragma omp parallel num_threads(blocks.threads)
    {
        const FlushDenormals flush;
        const ThreadTeam team;
        for (int64_t i = 0; i < blocks.count; ++i) {
            const vssm_vim_block s = block(i);
            const vssm_tensor& stream = i ? blocks.out : blocks.stream;
            const vssm_vim_block* next = i + 1 < blocks.count ? blocks.branches[i + 1] : nullptr;
            if (workspace.pair && team.size == 2)
                run_pair(s, i, next, stream, blocks.out, workspace, team);
            else
                run_team(s, stream, blocks.out, workspace, team);
        }
    }
    normalise_rows(blocks, arena);
    arena.release_if_large();
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
