// What forward and backward share: one tile is VSSM_CHUNK steps of one direction for a block of Vec::W channels.
#pragma once

#include "scan.h"
#include "simd.h"

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace VISION_SSM_ISA {

constexpr int T = VSSM_CHUNK;
constexpr int W = Vec::W;

// States that fade away become denormal numbers, which some processors compute a hundred times slower.
class FlushDenormals {
  public:
#if defined(__SSE2__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#endif
};

// The rows of one direction of one image: row(token) is where that token's channels (or states) begin.
template <class E>
struct Rows {
    E* base;
    int64_t stride;

    Rows(const vssm_tensor& x, int64_t image, int64_t direction)
        : base(static_cast<E*>(x.data) + image * x.batch_stride + direction * x.direction_stride),
          stride(x.token_stride) {}
    E* row(int64_t token) const { return base + token * stride; }
};

template <class E>
inline Vec load(const E* p, int lanes) {
    return lanes == W ? Vec::load(p) : Vec::load(p, lanes);
}

template <class E>
inline void store(Vec x, E* p, int lanes) {
    if (lanes == W)
        x.store(p);
    else
        x.store(p, lanes);
}

// Fetch a line into the first- or the second-level cache.
template <int Level>
inline void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p, 0, Level == 1 ? 3 : 2);
#endif
}

// The tiles of a walk: at most T steps each, ending where the state starts anew. Where the walk is the rest of one
// without resets, `before` steps of which were done, they end where that one's tiles do.
struct Tiles {
    int64_t length, run, phase, per_run;

    explicit Tiles(const vssm_walk& walk, int64_t before = 0)
        : length(walk.length),
          run(walk.reset ? walk.inner_count : std::max<int64_t>(walk.length, 1)),
          phase(before % T),
          per_run((run + phase + T - 1) / T) {}
    int64_t count() const { return length / run * per_run + (length % run + T - 1) / T; }
    int64_t first(int64_t tile) const { return tile / per_run * run + begin(tile % per_run); }
    int steps(int64_t tile) const {
        const int64_t in_run = tile % per_run, end = std::min(begin(in_run + 1), run);
        return static_cast<int>(std::min(end - begin(in_run), length - first(tile)));
    }
    bool starts_anew(int64_t tile) const { return tile % per_run == 0; }

  private:
    int64_t begin(int64_t in_run) const { return std::max<int64_t>(in_run * T - phase, 0); }
};

// The tokens that a tile reads and those that it writes its outputs at.
struct Places {
    int64_t reads[T], writes[T];

    void set(const vssm_walk& walk, int64_t first, int count) {
        follow(walk, walk.start, walk.inner_stride, walk.outer_stride, first, count, reads);
        follow(walk, walk.write_start, walk.write_inner_stride, walk.write_outer_stride, first, count, writes);
    }

  private:
    static void follow(const vssm_walk& walk, int64_t start, int64_t inner_stride, int64_t outer_stride, int64_t first,
                       int count, int64_t* tokens) {
        int64_t inner = first % walk.inner_count;
        int64_t token = start + first / walk.inner_count * outer_stride + inner * inner_stride;
        for (int t = 0; t < count; ++t) {
            tokens[t] = token;
            token += inner_stride;
            if (++inner == walk.inner_count) {
                inner = 0;
                token += outer_stride - walk.inner_count * inner_stride;
            }
        }
    }
};

// Memory that is needed soon after, brought into the second-level cache a few lines at a time, while the processor is
// busy with what leaves memory idle.
class Upcoming {
  public:
    void add(const void* data, int64_t bytes) {
        bytes = std::min(bytes, (MOST - lines_) * LINE);
        if (bytes <= 0) return;
        ranges_[count_++] = {static_cast<const char*>(data), static_cast<const char*>(data) + bytes};
        lines_ += (bytes + LINE - 1) / LINE;
    }
    int lines() const { return static_cast<int>(lines_); }
    // There will be this many steps: begin so late that the last of them fetch.
    void finish_within(int64_t steps) { wait_ = std::max<int64_t>(steps - lines_ / EACH, 0); }
    void step() {
        if (wait_ > 0)
            --wait_;
        else
            fetch(EACH);
    }
    void fetch(int lines) {
        if (at_ == count_) return;
        auto& range = ranges_[at_];
        for (int i = 0; i < lines; ++i) prefetch<2>(range.next + i * LINE);
        range.next += lines * LINE;
        if (range.next >= range.end) ++at_;
    }

  private:
    static constexpr int64_t LINE = 64, MOST = (int64_t{1} << 20) / LINE;  // half of a second-level cache
    static constexpr int EACH = 2;
    struct {
        const char *next, *end;
    } ranges_[6];
    int count_ = 0, at_ = 0;
    int64_t lines_ = 0, wait_ = 0;
};

// Fetches the next tile's rows into the second-level cache while this one's states advance, one line of every tensor
// a step. Whole rows in order: memory delivers those at more than twice the rate of one line out of every row, which
// is what a block of channels reads.
class Ahead {
  public:
    template <class E>
    void add(const Rows<E>& rows, int64_t channel, bool written) {
        tensors_[count_++] = {reinterpret_cast<const char*>(rows.base + channel),
                              rows.stride * static_cast<int64_t>(sizeof(E)), W * static_cast<int64_t>(sizeof(E)),
                              written};
    }
    void then(Upcoming* upcoming) { upcoming_ = upcoming; }
    void start(const Places& places, int rows, int64_t blocks) {
        places_ = &places;
        rows_ = rows;
        blocks_ = blocks;
        row_ = 0;
        block_ = 0;
    }
    void fetch() {
        if (upcoming_) upcoming_->step();
        if (row_ >= rows_) return;
        const int64_t read = places_->reads[row_], write = places_->writes[row_];
        for (int i = 0; i < count_; ++i) {
            const auto& x = tensors_[i];
            prefetch<2>(x.base + (x.written ? write : read) * x.stride + block_ * x.width);
        }
        if (++block_ == blocks_) {
            block_ = 0;
            ++row_;
        }
    }

  private:
    struct {
        const char* base;
        int64_t stride, width;
        bool written;
    } tensors_[8];
    int count_ = 0, rows_ = 0, row_ = 0;
    const Places* places_ = nullptr;
    int64_t blocks_ = 0, block_ = 0;
    Upcoming* upcoming_ = nullptr;
};

// Whether direction k adds to a result that the directions share, rather than being the first to write it.
inline bool adds_to_shared(const vssm_scan& s, int64_t k) {
    return s.cover == VSSM_COVER_SOME || (s.cover == VSSM_COVER_EACH && k > 0);
}

// Rows of B or C as float32 [count][states]: they are read once per block of channels.
template <class E>
inline void copy_states(const Rows<E>& rows, const int64_t* tokens, int count, int64_t states, float* out) {
    for (int t = 0; t < count; ++t) {
        const E* row = rows.row(tokens[t]);
        for (int64_t n = 0; n < states; ++n) {
            if constexpr (sizeof(E) == 2)
                out[t * states + n] = widen(row[n]);
            else
                out[t * states + n] = row[n];
        }
    }
}

// How the C channels of an image are cut into blocks of W and the blocks into groups, one group per task.
struct Share {
    int64_t first_block, blocks;

    Share(const vssm_scan& s, int64_t group) {
        const int64_t all = (s.channels + W - 1) / W;
        first_block = all * group / s.groups;
        blocks = all * (group + 1) / s.groups - first_block;
    }
    int64_t channel(int64_t block) const { return (first_block + block) * W; }
    static int lanes(const vssm_scan& s, int64_t channel) {
        return static_cast<int>(s.channels - channel < W ? s.channels - channel : W);
    }
};

// A * log2(e) of direction k as [blocks][N][W], so that the decay of a step is one power of two of one product.
inline void copy_rates(const vssm_scan& s, int64_t k, const Share& share, float* rate) {
    for (int64_t block = 0; block < share.blocks; ++block) {
        const int64_t channel = share.channel(block);
        const float* a = s.a + (k * s.channels + channel) * s.states;
        const int lanes = Share::lanes(s, channel);
        float* out = rate + block * s.states * W;
        if (lanes < W) std::fill_n(out, s.states * W, 0.f);
        for (int lane = 0; lane < lanes; ++lane)
            for (int64_t n = 0; n < s.states; ++n) out[n * W + lane] = a[lane * s.states + n] * LOG2E;
    }
}

#if defined(__GNUC__) || defined(__clang__)
#define VSSM_INLINE inline __attribute__((always_inline))
#else
#define VSSM_INLINE inline
#endif

template <class F, int... I>
VSSM_INLINE void unroll(F&& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}

// Call f(0), f(1), ... f(Count - 1) with constants: arrays indexed by them live in registers, which a loop that the
// compiler unrolls later does not guarantee.
template <int Count, class F>
VSSM_INLINE void unroll(F&& f) {
    unroll(f, std::make_integer_sequence<int, Count>{});
}

// Call step(first_state, constant) over all states in groups of at most Most, with the group size as a constant, so
// that a group's states stay in registers.
template <int Most, class F>
inline void for_state_groups(int64_t states, F&& step) {
    int64_t n = 0;
    for (; states - n >= Most; n += Most) step(n, std::integral_constant<int, Most>{});
    if constexpr (Most > 1) {
        if (states > n)
            for_state_groups<Most / 2>(states - n, [&](int64_t at, auto size) { step(n + at, size); });
    }
}

}  // namespace VISION_SSM_ISA
