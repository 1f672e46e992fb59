// How threads go through one image of a Vim block: one alone, two that take a direction each, or all together.
//
// The first half of in_proj is made for all tokens of a block, since every direction reads it; the gate and out_proj
// are made where the last direction passes, so that z is held for no more than a tile, or half of a small image.
#pragma once

#include "common/threads.h"
#include "vim_block/block.h"
#include "vim_block/peer.h"

#include <vector>

namespace VISION_SSM_ISA {

// One image of a block and the memory that a thread works on it in.
struct ImageTask {
    const VimBlock& block;
    const vssm_ssm& ssm;
    const ImageBuffers& image;
    TileScratch& tile;
    const BlockScratch& scratch;
    const int64_t* slots;  // 0, 1, 2, ...: rows of z in the scratch memory
};

enum class Visit { FIRST, AGAIN, LAST, ONLY };  // whether the directions before have summed here, and others will

inline Visit visit_of(const vssm_ssm& s, int64_t k) {
    if (s.directions == 1) return Visit::ONLY;
    return k == 0 ? Visit::FIRST : k + 1 == s.directions ? Visit::LAST : Visit::AGAIN;
}

// A direction's walk, or the rest of it after `before` steps.
struct Leg {
    const PackedParameters& parameters;
    int64_t k;
    const vssm_walk& walk;
    int64_t before;
    Visit visit;
};

inline DirectionPass<float> pass_of(const ImageTask& task, const Leg& leg) {
    const auto rows = [&](float* base) {
        return Rows<float>({base, 0, 0, task.image.stride, VSSM_FLOAT32}, 0, 0);
    };
    const bool to_sum = leg.visit == Visit::FIRST || leg.visit == Visit::AGAIN;
    const bool add_sum = leg.visit == Visit::AGAIN || leg.visit == Visit::LAST;
    Epilogue<float> epilogue{rows(task.image.sum), rows(task.scratch.z), rows(task.image.sum), to_sum, add_sum, true};
    epilogue.ungated = task.block.sums();
    epilogue.ungated_stride = task.block.sums_stride();
    DirectionPass<float> pass(task.ssm, leg.parameters, leg.k, leg.walk, leg.before, task.tile, rows(task.image.hidden),
                              epilogue, task.slots);
    task.block.save_for_backward(leg.k, pass);
    return pass;
}

// The tokens that steps [first, end) of a sequence visit: [lowest, lowest + end - first).
inline int64_t lowest_token(const vssm_walk& walk, int64_t first, int64_t end) {
    return walk.inner_stride > 0 ? walk.start + first : walk.start - (end - 1);
}

// Makes rows of hidden for the tokens [first, end), where a thread walks first, as it gets there, so that they are
// still in its caches.
class InProjection {
  public:
    InProjection(const VimBlock& block, const BlockScratch& scratch, int64_t first, int64_t end, int64_t tokens,
                 bool onwards)
        : block_(block), scratch_(scratch), first_(first), end_(end), tokens_(tokens), onwards_(onwards) {}

    // Make all of [low, high) that belong here, and all on the way.
    void reach(int64_t low, int64_t high) {
        if (onwards_)
            for (const int64_t goal = std::min(high, end_); first_ < goal;) {
                const int64_t to = std::min(first_ + scratch_.rows, end_);
                // A product writes rows up to a multiple of HALF_MR: rather own ones anew, or before the first token,
                // than the other thread's.
                make(to == end_ ? to - round_up(to - first_, HALF_MR) : first_, to);
                first_ = to;
            }
        else
            for (const int64_t goal = std::max(low, first_); goal < end_;) {
                const int64_t from = std::max(end_ - scratch_.rows, first_);
                make(from, std::min(from + round_up(end_ - from, HALF_MR), tokens_));
                end_ = from;
            }
    }

  private:
    void make(int64_t from, int64_t to) const { block_.project_hidden(from, to, scratch_); }

    const VimBlock& block_;
    const BlockScratch& scratch_;
    int64_t first_, end_;  // what is still to be made
    const int64_t tokens_;
    const bool onwards_;
};

// What a thread has besides that shares an image with one other.
struct Pairing {
    InProjection& in_projection;
    PrefetchQueue& queue;
    PeerSync& peer;
};

// Walk one direction, or a part of it, alone; where it passes last, the output is made. As one of a pair another thread
// does the same from the other end, and each takes over where the other began.
inline void walk_leg(const ImageTask& task, const Leg& leg, const Pairing* pairing = nullptr) {
    const VimBlock& block = task.block;
    const BlockScratch& scratch = task.scratch;
    const vssm_walk& walk = leg.walk;
    DirectionPass<float> pass = pass_of(task, leg);
    pass.take_blocks(0, ceil_div(task.ssm.channels, W), pairing ? &pairing->queue : nullptr);
    const bool last = leg.visit == Visit::LAST || leg.visit == Visit::ONLY, at_once = block.pack_on_use() && last;
    PeerSync* peer = pairing && last ? &pairing->peer : nullptr;  // whose half is taken over
    const auto length = static_cast<int>(walk.length);
    if (at_once) {
        if (peer) peer->await_before(Milestone::DONE);  // the rows that z is made of
        block.project_gate(walk, 0, 0, length, scratch.z, scratch);
    }
    if (peer) peer->await(Milestone::MET);
    for (int64_t tile = 0; tile < pass.tiles(); ++tile) {
        const int64_t first = pass.first(tile), end = first + pass.steps(tile), token = lowest_token(walk, first, end);
        if (pairing) pairing->in_projection.reach(token, token + end - first);
        pass.project(tile, 0, pass.steps(tile), 0);
        if (at_once)
            pass.read_gates_at(task.slots + first);
        else if (last)
            block.project_gate(walk, first, 0, pass.steps(tile), scratch.z, scratch);
        pass.advance_tile(tile, 0);
        if (last && !at_once) block.project_out(token, token + end - first, scratch);
        constexpr int64_t CLEAR = VSSM_MOST_TAPS - 1;  // steps whose convolution may read rows from before the first
        if (peer && first < CLEAR && end >= CLEAR) peer->reach(Milestone::CLEARED);
    }
    if (at_once) block.project_out(lowest_token(walk, 0, length), lowest_token(walk, 0, length) + length, scratch);
}

// A direction's walk from end to end.
inline Leg whole(const ImageTask& task, const std::vector<PackedParameters>& parameters, int64_t k) {
    return {parameters[static_cast<size_t>(k)], k, task.ssm.walks[k], 0, visit_of(task.ssm, k)};
}

// One image by one thread.
inline void run_alone(const ImageTask& task, const std::vector<PackedParameters>& parameters) {
    const vssm_ssm& s = task.ssm;
    for (int64_t t = 0; t < s.tokens; t += MC)
        task.block.project_hidden(t, std::min<int64_t>(t + MC, s.tokens), task.scratch);
    for (int64_t k = 0; k < s.directions; ++k) walk_leg(task, whole(task, parameters, k));
}

// One image by two threads and two opposite directions: each thread walks one and meets the other in the middle, so
// that little passes from one core's cache to the other's.
inline bool mirrored(const vssm_ssm& s) {
    return s.directions == 2 && s.walks[0].inner_stride * s.walks[1].inner_stride < 0 && s.tokens >= 2 * MR;
}

// Whether the convolution of direction k reads tokens that the walk has passed, not those to come.
inline bool looks_back(const vssm_ssm& s, int64_t k) { return (s.reverse[k] != 0) == (s.walks[k].inner_stride < 0); }

// `k` is the direction of this thread, which walks from an end of the sequence to the other. In the next block it takes
// the other direction, so that it starts from the rows that it has just made and need not wait for the other thread.
inline void run_mirrored(const ImageTask& task, const PackedParameters& parameters, int64_t k, PrefetchQueue& queue,
                         PeerSync& peer) {
    const vssm_ssm& s = task.ssm;
    const int64_t middle = s.tokens / 2;
    const bool onwards = s.walks[k].inner_stride > 0;
    const int64_t first = onwards ? middle : s.tokens - middle;
    peer.await_before(Milestone::CLEARED);  // a convolution may still read rows of hidden on this side of the middle
    InProjection in_projection(task.block, task.scratch, onwards ? 0 : middle, onwards ? middle : s.tokens, s.tokens,
                               onwards);
    if (!looks_back(s, 0) || !looks_back(s, 1)) {  // a convolution needs rows from ahead of its walk
        in_projection.reach(0, s.tokens);
        peer.reach(Milestone::PROJECTED);
        peer.await(Milestone::PROJECTED);
    }
    const auto part = [&](int64_t from, int64_t length) {
        vssm_walk walk = s.walks[k];
        walk.start += from * walk.inner_stride;
        walk.write_start = walk.start;
        walk.length = length;
        walk.inner_count = std::max<int64_t>(length, 1);
        return walk;
    };
    const Pairing pairing{in_projection, queue, peer};
    walk_leg(task, {parameters, k, part(0, first), 0, Visit::FIRST}, &pairing);
    peer.reach(Milestone::MET);
    walk_leg(task, {parameters, k, part(first, s.tokens - first), first, Visit::LAST}, &pairing);
    peer.reach(Milestone::DONE);
}

// One image by all threads. A group of tiles is made ready, and the group before it taken out, a subtile at a time. The
// task's scratch memory holds z for all; `own` is this thread's.
inline void run_shared(const ImageTask& task, const std::vector<PackedParameters>& parameters, const BlockScratch& own,
                       int64_t together, const ThreadTeam& team) {
    const VimBlock& block = task.block;
    const vssm_ssm& s = task.ssm;
    const int64_t blocks = ceil_div(s.channels, W), rows = s.tokens >= 4 * MC * team.size ? MC : SUBTILE;
#pragma omp for schedule(dynamic, 1)
    for (int64_t piece = 0; piece < ceil_div(s.tokens, rows); ++piece)
        block.project_hidden(piece * rows, std::min((piece + 1) * rows, s.tokens), own);
    for (int64_t k = 0; k < s.directions; ++k) {
        DirectionPass<float> pass = pass_of(task, whole(task, parameters, k));
        pass.take_blocks(blocks * team.index / team.size, blocks * (team.index + 1) / team.size);
        const bool last = k + 1 == s.directions;
        int64_t done = 0, done_end = 0;  // tokens of the group before, which wait for out_proj
        const auto project_out = [&](int64_t piece) {
            block.project_out(done + piece * SUBTILE, std::min(done + (piece + 1) * SUBTILE, done_end), own);
        };
        for (int64_t first = 0; first < pass.tiles(); first += together) {
            const int64_t count = std::min(pass.tiles() - first, together);
            const int64_t waiting = ceil_div(done_end - done, SUBTILE);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < waiting + count * (T / SUBTILE); ++i) {
                if (i < waiting) {
                    project_out(i);
                    continue;
                }
                const int64_t slot = (i - waiting) / (T / SUBTILE), tile = first + slot;
                const int subtile = static_cast<int>((i - waiting) % (T / SUBTILE)), from = subtile * SUBTILE;
                pass.project_subtile(tile, subtile, slot);
                if (last && from < pass.steps(tile))
                    block.project_gate(s.walks[k], pass.first(tile), from, std::min(from + SUBTILE, pass.steps(tile)),
                                       task.scratch.z + slot * T * task.image.stride, own);
            }
            for (int64_t slot = 0; slot < count; ++slot) pass.advance_tile(first + slot, slot);
            if (last) {
                const int64_t step = pass.first(first), final = first + count - 1;
                const int64_t end = pass.first(final) + pass.steps(final);
                done = lowest_token(s.walks[k], step, end);
                done_end = done + end - step;
            }
#pragma omp barrier  // before the rows are made anew, or taken out
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < ceil_div(done_end - done, SUBTILE); ++i) project_out(i);
    }
}

}  // namespace VISION_SSM_ISA
