// Picks the compilation of the kernels that this machine can run.
#include "scan.h"

#include <initializer_list>

#define DECLARE(isa)                        \
    namespace isa {                         \
    void scan_forward(const vssm_scan&);    \
    void scan_backward(const vssm_scan&);   \
    }
DECLARE(portable)
DECLARE(avx2)
DECLARE(avx512)
#undef DECLARE

namespace {

bool has_isa(int32_t isa) {
    switch (isa) {
        case VSSM_ISA_PORTABLE:
            return true;
#ifdef VISION_SSM_HAVE_AVX2
        case VSSM_ISA_AVX2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef VISION_SSM_HAVE_AVX512
        case VSSM_ISA_AVX512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
        default:
            return false;
    }
}

int32_t best_isa() {
    for (const int32_t isa : {VSSM_ISA_AVX512, VSSM_ISA_AVX2})
        if (has_isa(isa)) return isa;
    return VSSM_ISA_PORTABLE;
}

}  // namespace

int32_t vssm_abi_version(void) { return 1; }
int32_t vssm_has_isa(int32_t isa) { return has_isa(isa) ? 1 : 0; }
int32_t vssm_best_isa(void) { return best_isa(); }

#define RUN(scan, function)                                                       \
    switch (scan->isa == VSSM_ISA_BEST ? best_isa() : scan->isa) {                \
        case VSSM_ISA_PORTABLE: portable::function(*scan); return 0;              \
        RUN_AVX2(scan, function)                                                  \
        RUN_AVX512(scan, function)                                                \
        default: return 1;                                                        \
    }
#ifdef VISION_SSM_HAVE_AVX2
#define RUN_AVX2(scan, function) case VSSM_ISA_AVX2: avx2::function(*scan); return 0;
#else
#define RUN_AVX2(scan, function)
#endif
#ifdef VISION_SSM_HAVE_AVX512
#define RUN_AVX512(scan, function) case VSSM_ISA_AVX512: avx512::function(*scan); return 0;
#else
#define RUN_AVX512(scan, function)
#endif

int vssm_scan_forward(const vssm_scan* scan) {
    if (scan->isa != VSSM_ISA_BEST && !has_isa(scan->isa)) return 1;
    RUN(scan, scan_forward)
}

int vssm_scan_backward(const vssm_scan* scan) {
    if (scan->isa != VSSM_ISA_BEST && !has_isa(scan->isa)) return 1;
    RUN(scan, scan_backward)
}
