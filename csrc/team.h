// The threads of a parallel region, and what they do together before anything else.
#pragma once

#include "ssm_pass.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace VISION_SSM_ISA {

struct Team {
#if defined(_OPENMP)
    const int64_t self = omp_get_thread_num(), size = omp_get_num_threads();
#else
    const int64_t self = 0, size = 1;
#endif
};

// Called by every thread of the team; all parameters are there when it returns.
inline void fill_parameters(const vssm_ssm& s, std::vector<Parameters>& parameters) {
    const int64_t parts = parameters.front().parts(s);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < static_cast<int64_t>(parameters.size()) * parts; ++i) {
        Parameters& p = parameters[static_cast<size_t>(i / parts)];
        if (s.parameter_dtype == VSSM_BFLOAT16)
            p.template fill<bfloat16>(s, i / parts, i % parts);
        else
            p.template fill<float>(s, i / parts, i % parts);
    }
}

}  // namespace VISION_SSM_ISA
