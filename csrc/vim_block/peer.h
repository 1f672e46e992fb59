// How two threads that go through the blocks of one image synchronise: each waits for what it needs of the other, and
// no longer, as a barrier of both would.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace VISION_SSM_ISA {

// What a thread has done in a block, in this order.
enum class Milestone : int64_t {
    PROJECTED = 1,  // its half of hidden is there, where the other thread reads of it before they meet
    MET,            // it has walked its first half
    CLEARED,        // and needs nothing more from its side of the middle
    DONE,           // its second half of the output is there
};

// A thread's last milestone, on a cache line of its own.
struct alignas(64) Progress {
    std::atomic<int64_t> at{0};
};

// One of two threads in one block.
class PeerSync {
  public:
    PeerSync(Progress& mine, const Progress& other, int64_t block) : mine_(mine), other_(other), block_(block) {}

    void reach(Milestone milestone) { mine_.at.store(count(block_, milestone), std::memory_order_release); }
    // Until the other has got there in this block.
    void await(Milestone milestone) const { await_count(count(block_, milestone)); }
    // Until it has in the block before, if there is one.
    void await_before(Milestone milestone) const {
        if (block_ > 0) await_count(count(block_ - 1, milestone));
    }

  private:
    static int64_t count(int64_t block, Milestone milestone) {
        return block * (static_cast<int64_t>(Milestone::DONE) + 1) + static_cast<int64_t>(milestone);
    }
    void await_count(int64_t goal) const {
        // The other is at most a share of a block behind, unless something else has taken its processor.
        for (int spins = 0; other_.at.load(std::memory_order_acquire) < goal; ++spins)
            if (spins < SPINS)
                pause();
            else
                std::this_thread::yield();
    }
    static void pause() {
#if defined(__SSE2__)
        _mm_pause();
#endif
    }

    static constexpr int SPINS = 128;
    Progress& mine_;
    const Progress& other_;
    const int64_t block_;
};

}  // namespace VISION_SSM_ISA
