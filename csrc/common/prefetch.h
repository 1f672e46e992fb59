// Bringing memory into the caches before it is needed.
#pragma once

#include "common/rows.h"
#include "common/walk.h"

#include <algorithm>
#include <cstddef>

namespace VISION_SSM_ISA {

// Fetch a line into the first- or the second-level cache.
template <int Level>
inline void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(p, 0, Level == 1 ? 3 : 2);
#endif
}

// Memory that is needed soon after, brought into the second-level cache a few lines at a time, while the processor is
// busy with what leaves memory idle.
class PrefetchQueue {
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
class TilePrefetch {
  public:
    template <class E>
    void add(const Rows<E>& rows, int64_t channel, bool written) {
        tensors_[count_++] = {reinterpret_cast<const char*>(rows.base + channel),
                              rows.stride * static_cast<int64_t>(sizeof(E)), W * static_cast<int64_t>(sizeof(E)),
                              written};
    }
    // And the queue, a step for every fetch of a row's lines.
    void then(PrefetchQueue* queue) { queue_ = queue; }
    void start(const TileTokens& visited, int rows, int64_t blocks) {
        visited_ = &visited;
        rows_ = rows;
        blocks_ = blocks;
        row_ = 0;
        block_ = 0;
    }
    void fetch() {
        if (queue_) queue_->step();
        if (row_ >= rows_) return;
        const int64_t read = visited_->reads[row_], write = visited_->writes[row_];
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
    const TileTokens* visited_ = nullptr;
    int64_t blocks_ = 0, block_ = 0;
    PrefetchQueue* queue_ = nullptr;
};

// The lines a block is about to touch, one of every row, brought on from the second-level cache while the states
// advance: loads would wait for them little, but stores retire in order and would wait for each.
class LinePrefetch {
  public:
    template <class E>
    void add(const Rows<E>& rows, int64_t channel, const int64_t* tokens, int count) {
        lines_[size_++] = {reinterpret_cast<const char*>(rows.base + channel),
                           rows.stride * static_cast<int64_t>(sizeof(E)), tokens, count};
    }
    void fetch(int t) const {
        for (int i = 0; i < size_; ++i)
            if (t < lines_[i].count) prefetch<1>(lines_[i].base + lines_[i].tokens[t] * lines_[i].stride);
    }

  private:
    struct {
        const char* base;
        int64_t stride;
        const int64_t* tokens;
        int count;
    } lines_[4];
    int size_ = 0;
};

}  // namespace VISION_SSM_ISA
