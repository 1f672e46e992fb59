// Scratch memory that a thread keeps from call to call: fresh pages would cost a small map as much as the scan.
#pragma once

#include "common/rounding.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(_WIN32)
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

namespace VISION_SSM_ISA {

class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { release(); }

    // Make room for `floats` and start from the beginning; what was there is lost. False when there is not enough.
    bool reserve(int64_t floats) {
        used_ = 0;
        if (floats <= capacity_) return true;
        release();
        const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + PAGE - 1) / PAGE * PAGE;
#if defined(_WIN32)
        memory_ = static_cast<float*>(_aligned_malloc(bytes, PAGE));
        if (!memory_) return false;
#else
        void* pages = nullptr;
        if (posix_memalign(&pages, PAGE, bytes) != 0) return false;
        memory_ = static_cast<float*>(pages);
#endif
#if defined(__linux__)
        madvise(memory_, bytes, MADV_HUGEPAGE);  // one page fault for 512; only a hint
#endif
        capacity_ = static_cast<int64_t>(bytes / sizeof(float));
        return true;
    }
    float* take(int64_t floats) {
        float* part = memory_ + used_;
        used_ += (floats + LINE - 1) / LINE * LINE;
        return part;
    }
    // Take again what was taken after the mark.
    using Mark = int64_t;
    Mark mark() const { return used_; }
    void rewind(Mark mark) { used_ = mark; }
    // Give back what grows with the image and is more than a small share of a machine's memory.
    void release_if_large() {
        if (capacity_ * static_cast<int64_t>(sizeof(float)) > KEPT) release();
    }
    static constexpr int64_t LINE = 16;  // floats in a cache line; every part begins at one

  private:
    void release() {
#if defined(_WIN32)
        _aligned_free(memory_);
#else
        std::free(memory_);
#endif
        memory_ = nullptr;
        capacity_ = 0;
    }

    static constexpr size_t PAGE = size_t{1} << 21;
    static constexpr int64_t KEPT = int64_t{64} << 20;  // bytes
    float* memory_ = nullptr;
    int64_t capacity_ = 0, used_ = 0;
};

// The stride of rows of so many floats: an odd number of cache lines, which spreads a column of them over all sets of
// the cache.
inline int64_t row_stride(int64_t width) { return (round_up(width, Arena::LINE) / Arena::LINE | 1) * Arena::LINE; }

}  // namespace VISION_SSM_ISA
