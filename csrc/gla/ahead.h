// Fetching the rows of one head's tokens in the next tile while the state is swept over this one: a head's channels are a
// few lines out of every row, which the processor's own prefetching does not foresee.
#pragma once

#include "common/prefetch.h"

namespace VISION_SSM_ISA {

class RowsAhead {
  public:
    template <class E>
    void add(const Rows<E>& rows, int64_t channel, int64_t width, bool written) {
        tensors_[count_++] = {reinterpret_cast<const char*>(rows.base + channel),
                              rows.stride * static_cast<int64_t>(sizeof(E)), width * static_cast<int64_t>(sizeof(E)),
                              written};
    }
    // The rows of a tile, none where there is no next one.
    void start(const TileTokens& visited, int rows) {
        visited_ = &visited;
        left_ = rows;
    }
    // How many rows to fetch at a time to be done in so many times.
    int rows_each(int64_t times) const { return static_cast<int>((left_ + times - 1) / times); }
    void fetch(int rows) {
        for (; rows > 0 && left_ > 0; --rows) {
            --left_;
            for (int i = 0; i < count_; ++i) {
                const auto& x = tensors_[i];
                const char* row = x.base + (x.written ? visited_->writes : visited_->reads)[left_] * x.stride;
                for (int64_t at = 0; at < x.bytes; at += LINE) prefetch<2>(row + at);
                prefetch<2>(row + x.bytes - 1);
            }
        }
    }

  private:
    static constexpr int64_t LINE = 64;
    struct {
        const char* base;
        int64_t stride, bytes;
        bool written;
    } tensors_[6];
    int count_ = 0, left_ = 0;
    const TileTokens* visited_ = nullptr;
};

}  // namespace VISION_SSM_ISA
