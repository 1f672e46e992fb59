// Forward gated linear attention, by the equations of include/gla.h: threads share the tasks of attend.h.
#include "common/threads.h"
#include "gla/attend.h"

namespace VISION_SSM_ISA {

namespace {

template <class E>
void forward(const vssm_gla& g) {
    const int64_t tasks = g.batch * g.heads * g.groups;
#pragma omp parallel num_threads(g.threads)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t of = task / g.groups;
            const ValueRange range(g, task % g.groups);
            if (range.width > 0) attend<E>(g, of / g.heads, of % g.heads, range);
        }
    }
}

}  // namespace

int gla_forward(const vssm_gla& g) {
    if (g.q.dtype == VSSM_BFLOAT16)
        forward<bfloat16>(g);
    else
        forward<float>(g);
    return VSSM_DONE;
}

}  // namespace VISION_SSM_ISA
