// The residual branches of a column of Vim blocks in one call. The first half of in_proj is made for all tokens of a
// block, since every direction reads it; the gate and out_proj are made where the last direction passes, so that z is
// held for no more than a tile, or half of a small image. Threads share the work as in kernel_ssm.cpp, but two of them
// on one image take a direction each.
#include "branch_steps.h"
#include "company.h"
#include "team.h"

#include <numeric>

namespace VISION_SSM_ISA {

namespace {

enum class Visit { FIRST, AGAIN, LAST, ONLY };  // whether the directions before have summed here, and others will

DirectionPass<float> pass(const Branch& branch, const vssm_ssm& s, const Parameters& parameters, int64_t k,
                          const vssm_walk& walk, int64_t before, Visit visit, Scratch& scratch, const Rooms& rooms,
                          const Desk& desk, const int64_t* slots) {
    const auto rows = [&](float* base) {
        return Rows<float>({base, 0, 0, rooms.stride, VSSM_FLOAT32}, 0, 0);
    };
    const bool to_sum = visit == Visit::FIRST || visit == Visit::AGAIN;
    const bool add_sum = visit == Visit::AGAIN || visit == Visit::LAST;
    Sink<float> sink{rows(rooms.sum), rows(desk.z), rows(rooms.sum), to_sum, add_sum, true};
    sink.ungated = branch.sums();
    sink.ungated_stride = branch.sums_stride();
    DirectionPass<float> made(s, parameters, k, walk, before, scratch, rows(rooms.hidden), sink, slots);
    branch.save(k, made);
    return made;
}

Visit visit_of(const vssm_ssm& s, int64_t k) {
    if (s.directions == 1) return Visit::ONLY;
    return k == 0 ? Visit::FIRST : k + 1 == s.directions ? Visit::LAST : Visit::AGAIN;
}

// The tokens that steps [first, end) of a sequence visit: [lowest, lowest + end - first).
int64_t lowest_token(const vssm_walk& walk, int64_t first, int64_t end) {
    return walk.inner_stride > 0 ? walk.start + first : walk.start - (end - 1);
}

int64_t pieces(int64_t tokens, int64_t each) { return (tokens + each - 1) / each; }

// Makes hidden for the tokens [first, end), where a thread walks first, as it gets there, so that they are still in its
// caches.
class Entrance {
  public:
    Entrance(const Branch& branch, const Desk& desk, int64_t first, int64_t end, int64_t tokens, bool onwards)
        : branch_(branch), desk_(desk), first_(first), end_(end), tokens_(tokens), onwards_(onwards) {}

    // Make all of [low, high) that belong here, and all on the way.
    void reach(int64_t low, int64_t high) {
        if (onwards_)
            for (const int64_t goal = std::min(high, end_); first_ < goal;) {
                const int64_t to = std::min(first_ + desk_.rows, end_);
                // A product writes rows up to a multiple of FEW: rather own ones anew, or before the first token, than
                // the other thread's.
                make(to == end_ ? to - round_up(to - first_, FEW) : first_, to);
                first_ = to;
            }
        else
            for (const int64_t goal = std::max(low, first_); goal < end_;) {
                const int64_t from = std::max(end_ - desk_.rows, first_);
                make(from, std::min(from + round_up(end_ - from, FEW), tokens_));
                end_ = from;
            }
    }

  private:
    void make(int64_t from, int64_t to) const { branch_.enter(from, to, desk_); }

    const Branch& branch_;
    const Desk& desk_;
    int64_t first_, end_;  // what is still to be made
    const int64_t tokens_;
    const bool onwards_;
};

// Walk one direction, or a part of it, alone; where it passes last, the output is made. In company another thread does
// the same from the other end, and each takes over where the other began.
void walk_alone(const Branch& branch, const vssm_ssm& s, const Parameters& parameters, int64_t k, const vssm_walk& walk,
                int64_t before, Visit visit, Scratch& scratch, const Rooms& rooms, const Desk& desk,
                const int64_t* slots, Entrance* entrance = nullptr, Upcoming* upcoming = nullptr,
                Company* company = nullptr) {
    DirectionPass<float> mine = pass(branch, s, parameters, k, walk, before, visit, scratch, rooms, desk, slots);
    mine.take_blocks(0, (s.channels + W - 1) / W, upcoming);
    const bool last = visit == Visit::LAST || visit == Visit::ONLY, at_once = branch.by_panel() && last;
    const bool takes_over = company && last;
    const auto length = static_cast<int>(walk.length);
    if (at_once) {
        if (takes_over) company->await_before(Milestone::DONE);  // the rows that z is made of
        branch.gate(walk, 0, 0, length, desk.z, desk);
    }
    if (takes_over) company->await(Milestone::MET);
    for (int64_t tile = 0; tile < mine.tiles(); ++tile) {
        const int64_t first = mine.first(tile), end = first + mine.steps(tile), token = lowest_token(walk, first, end);
        if (entrance) entrance->reach(token, token + end - first);
        mine.project(tile, 0, mine.steps(tile), 0);
        if (at_once)
            mine.read_gates_at(slots + first);
        else if (last)
            branch.gate(walk, first, 0, mine.steps(tile), desk.z, desk);
        mine.advance_tile(tile, 0);
        if (last && !at_once) branch.leave(token, token + end - first, desk);
        constexpr int64_t CLEAR = MOST_TAPS - 1;  // the steps whose convolution may read rows from before the first
        if (takes_over && first < CLEAR && end >= CLEAR) company->reach(Milestone::PARTED);
    }
    if (at_once) branch.leave(lowest_token(walk, 0, length), lowest_token(walk, 0, length) + length, desk);
}

// One image by one thread.
void run_alone(const Branch& branch, const vssm_ssm& s, const std::vector<Parameters>& parameters, Scratch& scratch,
               const Rooms& rooms, const Desk& desk, const int64_t* slots) {
    for (int64_t t = 0; t < s.tokens; t += ROWS) branch.enter(t, std::min<int64_t>(t + ROWS, s.tokens), desk);
    for (int64_t k = 0; k < s.directions; ++k)
        walk_alone(branch, s, parameters[static_cast<size_t>(k)], k, s.walks[k], 0, visit_of(s, k), scratch, rooms,
                   desk, slots);
}

// One image by two threads and two opposite directions: each thread walks one and meets the other in the middle, so
// that little passes from one core's cache to the other's.
bool mirrored(const vssm_ssm& s) {
    return s.directions == 2 && s.walks[0].inner_stride * s.walks[1].inner_stride < 0 && s.tokens >= 2 * TOKENS;
}

// Whether the convolution of direction k reads tokens that the walk has passed, not those to come.
bool looks_back(const vssm_ssm& s, int64_t k) { return (s.reverse[k] != 0) == (s.walks[k].inner_stride < 0); }

// `k` is the direction of this thread, which walks from an end of the sequence to the other. In the next block it takes
// the other direction, so that it starts from the rows that it has just made and need not wait for the other thread.
void run_mirrored(const Branch& branch, const vssm_ssm& s, const Parameters& parameters, int64_t k, Scratch& scratch,
                  const Rooms& rooms, const Desk& desk, const int64_t* slots, Upcoming& upcoming, Company& company) {
    const int64_t middle = s.tokens / 2;
    const bool onwards = s.walks[k].inner_stride > 0;
    const int64_t first = onwards ? middle : s.tokens - middle;
    company.await_before(Milestone::PARTED);  // a convolution may still read rows of hidden on this side of the middle
    Entrance entrance(branch, desk, onwards ? 0 : middle, onwards ? middle : s.tokens, s.tokens, onwards);
    if (!looks_back(s, 0) || !looks_back(s, 1)) {  // a convolution needs rows from ahead of its walk
        entrance.reach(0, s.tokens);
        company.reach(Milestone::ENTERED);
        company.await(Milestone::ENTERED);
    }
    const auto part = [&](int64_t from, int64_t length) {
        vssm_walk walk = s.walks[k];
        walk.start += from * walk.inner_stride;
        walk.write_start = walk.start;
        walk.length = length;
        walk.inner_count = std::max<int64_t>(length, 1);
        return walk;
    };
    const auto walk = [&](const vssm_walk& mine, int64_t before, Visit visit) {
        walk_alone(branch, s, parameters, k, mine, before, visit, scratch, rooms, desk, slots, &entrance, &upcoming,
                   &company);
    };
    walk(part(0, first), 0, Visit::FIRST);
    company.reach(Milestone::MET);
    walk(part(first, s.tokens - first), first, Visit::LAST);
    company.reach(Milestone::DONE);
}

// One image by all threads. A group of tiles is made ready, and the group before it taken out, piece by piece.
void run_shared(const Branch& branch, const vssm_ssm& s, const std::vector<Parameters>& parameters, Scratch& scratch,
                const Rooms& rooms, const Desk& desk, const Desk& own, const int64_t* slots, int64_t together,
                const Team& team) {
    const int64_t blocks = (s.channels + W - 1) / W, rows = s.tokens >= 4 * ROWS * team.size ? ROWS : PIECE;
#pragma omp for schedule(dynamic, 1)
    for (int64_t piece = 0; piece < pieces(s.tokens, rows); ++piece)
        branch.enter(piece * rows, std::min((piece + 1) * rows, s.tokens), own);
    for (int64_t k = 0; k < s.directions; ++k) {
        DirectionPass<float> mine = pass(branch, s, parameters[static_cast<size_t>(k)], k, s.walks[k], 0,
                                         visit_of(s, k), scratch, rooms, desk, slots);
        mine.take_blocks(blocks * team.self / team.size, blocks * (team.self + 1) / team.size);
        const bool last = k + 1 == s.directions;
        int64_t done = 0, done_end = 0;  // tokens of the group before, which wait for out_proj
        const auto leave = [&](int64_t piece) {
            branch.leave(done + piece * PIECE, std::min(done + (piece + 1) * PIECE, done_end), own);
        };
        for (int64_t first = 0; first < mine.tiles(); first += together) {
            const int64_t count = std::min(mine.tiles() - first, together), waiting = pieces(done_end - done, PIECE);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < waiting + count * (T / PIECE); ++i) {
                if (i < waiting) {
                    leave(i);
                    continue;
                }
                const int64_t slot = (i - waiting) / (T / PIECE), tile = first + slot;
                const int piece = static_cast<int>((i - waiting) % (T / PIECE)), from = piece * PIECE;
                mine.project_piece(tile, piece, slot);
                if (last && from < mine.steps(tile))
                    branch.gate(s.walks[k], mine.first(tile), from, std::min(from + PIECE, mine.steps(tile)),
                                desk.z + slot * T * rooms.stride, own);
            }
            for (int64_t slot = 0; slot < count; ++slot) mine.advance_tile(first + slot, slot);
            if (last) {
                const int64_t step = mine.first(first), final = first + count - 1;
                const int64_t end = mine.first(final) + mine.steps(final);
                done = lowest_token(s.walks[k], step, end);
                done_end = done + end - step;
            }
#pragma omp barrier  // before the rows are made anew, or taken out
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < pieces(done_end - done, PIECE); ++i) leave(i);
    }
}

// What a thread needs soon that walks direction k of the next block, if there is any: of this block what its products do
// not fetch themselves, then of that one.
Upcoming weights_to_come(const Ends& ends, const vssm_branch* next, int64_t k) {
    Upcoming upcoming;
    if (ends.by_panel)
        for (const Packed* p : {&ends.gate_proj, &ends.out_proj}) upcoming.add(p->source_panel(0), p->panel_bytes());
    if (!next) return upcoming;
    const vssm_ssm& ssm = next->ssm;
    const int64_t element = ssm.parameter_dtype == VSSM_BFLOAT16 ? 2 : 4, set = ssm.projections == 1 ? 0 : k;
    const auto add = [&](const void* data, int64_t at, int64_t count) {
        upcoming.add(static_cast<const char*>(data) + at * count * element, count * element);
    };
    add(ssm.dt_proj, set, ssm.channels * ssm.rank);
    add(ssm.a_log, k, ssm.channels * ssm.states);
    add(ssm.x_proj, set, (ssm.rank + 2 * ssm.states) * ssm.channels);
    if (ends.by_panel) {
        upcoming.add(next->in_proj, ends.hidden_proj.panel_bytes());
    } else {
        add(next->in_proj, 0, 2 * ssm.channels * next->width);
        upcoming.finish_within(ssm.tokens * ((ssm.channels + W - 1) / W));
    }
    return upcoming;
}

// What all blocks of a column use in turn.
struct Workplace {
    bool share, pair;  // whether threads share an image, and whether they take a direction each
    bool by_panel;     // whether a product takes all tokens of a thread at once
    int64_t tiles_each;
    std::vector<Parameters> parameters;
    std::vector<Scratch> scratch;
    std::vector<Rooms> rooms;
    std::vector<Desk> desks;
    std::vector<Ends> ends;
    std::vector<int64_t> slots;
    Progress progress[2];

    explicit Workplace(const vssm_branch& s)
        : share(s.ssm.batch < s.ssm.threads),
          pair(share && s.ssm.threads == 2 && mirrored(s.ssm)),
          by_panel(pair && pieces(s.ssm.tokens, 2) <= HALF_ROWS),
          tiles_each(share && !pair ? std::max<int64_t>(SHARED_ROWS / (T * Scratch::stride_of(s.ssm.channels)), 1) : 1),
          slots(static_cast<size_t>(std::max<int64_t>(tiles_each * T, HALF_ROWS))) {
        std::iota(slots.begin(), slots.end(), 0);
    }
    // Room for everything here, and `more` floats.
    bool furnish(const vssm_branch& s, int64_t more, Arena& arena) {
        const vssm_ssm& ssm = s.ssm;
        const int64_t images = share ? 1 : ssm.threads, teams = pair ? 2 : images, sets = pair ? 2 : 1;
        const int64_t gate_tiles = by_panel ? HALF_ROWS / T : tiles_each;
        const int rows = by_panel ? HALF_ROWS : ROWS;
        if (!arena.reserve(ssm.directions * Parameters::size(ssm) + sets * Ends::size(s, by_panel) +
                           teams * Scratch::size(ssm, tiles_each) + images * Rooms::size(ssm) +
                           ssm.threads * Desk::size(s, gate_tiles, rows) + more))
            return false;
        for (int64_t k = 0; k < ssm.directions; ++k) parameters.emplace_back(ssm, arena);
        for (int64_t i = 0; i < teams; ++i) scratch.emplace_back(ssm, tiles_each, arena);
        for (int64_t i = 0; i < images; ++i) rooms.emplace_back(ssm, arena);
        for (int64_t i = 0; i < ssm.threads; ++i) desks.emplace_back(s, gate_tiles, rows, arena);
        for (int64_t i = 0; i < sets; ++i) ends.emplace_back(s, by_panel, arena);
        return true;
    }
};

template <class F>
void with_parameter_type(const vssm_branch& s, F&& f) {
    if (s.ssm.parameter_dtype == VSSM_BFLOAT16)
        f(bfloat16{});
    else
        f(float{});
}

// One image by two threads. Each rearranges for itself what it needs of the weights: to fetch from the other core what
// that one rearranged, and to take the lines back for the next block, costs more.
void run_pair(const vssm_branch& s, int64_t block, const vssm_branch* next, const vssm_tensor& stream,
              const vssm_tensor& out, Workplace& w, const Team& team) {
    const vssm_ssm& ssm = s.ssm;
    const auto self = static_cast<size_t>(team.self);
    const int64_t k = (team.self + block) % 2;
    Ends& ends = w.ends[self];
    Parameters& parameters = w.parameters[self];
    with_parameter_type(s, [&](auto p) {
        using P = decltype(p);
        for (int64_t part = 0; part < ends.parts(); ++part) ends.fill<P>(s, part);
        for (int64_t part = 0; part < parameters.parts(ssm); ++part) parameters.fill<P>(ssm, k, part);
    });
    Upcoming upcoming = weights_to_come(ends, next, 1 - k);
    Company company(w.progress[self], w.progress[1 - self], block);
    run_mirrored(Branch(s, stream, out, ends, w.rooms[0], 0), ssm, parameters, k, w.scratch[self], w.rooms[0],
                 w.desks[self], w.slots.data(), upcoming, company);
}

// One block by any team.
void run_team(const vssm_branch& s, const vssm_tensor& stream, const vssm_tensor& out, Workplace& w, const Team& team) {
    const vssm_ssm& ssm = s.ssm;
    const auto self = static_cast<size_t>(team.self);
    Ends& ends = w.ends[0];
    with_parameter_type(s, [&](auto p) {
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t part = 0; part < ends.parts(); ++part) ends.fill<decltype(p)>(s, part);
    });
    fill_parameters(ssm, w.parameters);
    if (w.share) {
        for (int64_t image = 0; image < ssm.batch; ++image)
            run_shared(Branch(s, stream, out, ends, w.rooms[0], image), ssm, w.parameters, w.scratch[0], w.rooms[0],
                       w.desks[0], w.desks[self], w.slots.data(), w.tiles_each, team);
    } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t image = 0; image < ssm.batch; ++image)
            run_alone(Branch(s, stream, out, ends, w.rooms[self], image), ssm, w.parameters, w.scratch[self],
                      w.rooms[self], w.desks[self], w.slots.data());
    }
}

// The chosen rows of the last result, normalised: few enough for one thread.
void normalise_rows(const vssm_column& column, Arena& arena) {
    const vssm_branch& s = *column.branches[0];
    if (!column.chosen) return;
    Norm norm(s.width, arena);
    with_parameter_type(s, [&](auto p) {
        norm.fill<decltype(p)>(column.norm, column.eps, column.norm_weight, column.norm_bias);
    });
    for (int64_t image = 0; image < column.batch; ++image)
        for (int64_t i = 0; i < column.chosen; ++i)
            norm.forward(Rows<float>(column.out, image, 0).row(column.rows[i]),
                         Rows<float>(column.normed, image, 0).row(i));
}

}  // namespace

int column_forward(const vssm_column& column) {
    const auto block = [&](int64_t i) {
        vssm_branch s = *column.branches[i];
        s.ssm.batch = column.batch;
        s.ssm.threads = column.threads;
        return s;
    };
    const vssm_branch first = block(0);
    thread_local Arena arena;
    Workplace workplace(first);
    if (!workplace.furnish(first, Norm::size(first.width), arena)) return VSSM_NO_MEMORY;
#pragma omp parallel num_threads(column.threads)
    {
        const FlushDenormals flush;
        const Team team;
        for (int64_t i = 0; i < column.count; ++i) {
            const vssm_branch s = block(i);
            const vssm_tensor& stream = i ? column.out : column.stream;
            const vssm_branch* next = i + 1 < column.count ? column.branches[i + 1] : nullptr;
            if (workplace.pair && team.size == 2)
                run_pair(s, i, next, stream, column.out, workplace, team);
            else
                run_team(s, stream, column.out, workplace, team);
        }
    }
    normalise_rows(column, arena);
    arena.release_if_large();
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
