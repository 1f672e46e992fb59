// The threads of a parallel region.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace VISION_SSM_ISA {

// States that fade away become denormal numbers, which some processors compute a hundred times slower.
class [[maybe_unused]] FlushDenormals {
  public:
#if defined(__SSE2__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#endif
};

// A thread's place in its team.
struct ThreadTeam {
#if defined(_OPENMP)
    const int64_t index = omp_get_thread_num(), size = omp_get_num_threads();
#else
    const int64_t index = 0, size = 1;
#endif
};

}  // namespace VISION_SSM_ISA
