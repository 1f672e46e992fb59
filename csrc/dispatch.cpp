// Picks the compilation of the kernels that this machine can run.
#include "include/conv.h"
#include "include/gla.h"
#include "include/gla_block.h"
#include "include/library.h"
#include "include/mlp.h"
#include "include/patch_embed.h"
#include "include/scan.h"
#include "include/ssm.h"
#include "include/vim_block.h"

#include <initializer_list>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define DECLARE(isa)                        \
    namespace isa {                         \
    int scan_forward(const vssm_scan&);    \
    int scan_backward(const vssm_scan&);   \
    int conv_forward(const vssm_conv&);    \
    int conv_backward(const vssm_conv&);   \
    int gla_forward(const vssm_gla&);      \
    int gla_backward(const vssm_gla&);     \
    int gla_block_forward(const vssm_gla_block&); \
    int ssm_forward(const vssm_ssm&);      \
    int vim_blocks_forward(const vssm_vim_blocks&); \
    int vim_block_backward(const vssm_vim_block_gradients&); \
    int mlp_forward(const vssm_mlp&);       \
    int patch_embed_forward(const vssm_patch_embed&);   \
    }
DECLARE(portable)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(avx512bf16)
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
#ifdef VISION_SSM_HAVE_AVX512BF16
        case VSSM_ISA_AVX512BF16:
            return has_isa(VSSM_ISA_AVX512) && __builtin_cpu_supports("avx512bf16");
#endif
        default:
            return false;
    }
}

int32_t best_isa() {
    for (const int32_t isa : {VSSM_ISA_AVX512BF16, VSSM_ISA_AVX512, VSSM_ISA_AVX2})
        if (has_isa(isa)) return isa;
    return VSSM_ISA_PORTABLE;
}

}  // namespace

int32_t vssm_abi_version(void) { return 17; }
int32_t vssm_has_isa(int32_t isa) { return has_isa(isa) ? 1 : 0; }
int32_t vssm_best_isa(void) { return best_isa(); }

#ifdef VISION_SSM_HAVE_AVX2
#define CASE_AVX2(call) \
    case VSSM_ISA_AVX2: \
        return avx2::call;
#else
#define CASE_AVX2(call)
#endif
#ifdef VISION_SSM_HAVE_AVX512
#define CASE_AVX512(call) \
    case VSSM_ISA_AVX512: \
        return avx512::call;
#else
#define CASE_AVX512(call)
#endif
#ifdef VISION_SSM_HAVE_AVX512BF16
#define CASE_AVX512BF16(call) \
    case VSSM_ISA_AVX512BF16: \
        return avx512bf16::call;
#else
#define CASE_AVX512BF16(call)
#endif
#define RUN(wanted, call)                                        \
    if (wanted != VSSM_ISA_BEST && !has_isa(wanted)) return VSSM_MISSING_ISA; \
    switch (wanted == VSSM_ISA_BEST ? best_isa() : wanted) {     \
        CASE_AVX512BF16(call)                                    \
        CASE_AVX512(call)                                        \
        CASE_AVX2(call)                                          \
        default:                                                 \
            return portable::call;                       \
    }

int vssm_scan_forward(const vssm_scan* scan) { RUN(scan->isa, scan_forward(*scan)) }
int vssm_scan_backward(const vssm_scan* scan) { RUN(scan->isa, scan_backward(*scan)) }
int vssm_conv_forward(const vssm_conv* conv) { RUN(conv->isa, conv_forward(*conv)) }
int vssm_conv_backward(const vssm_conv* conv) { RUN(conv->isa, conv_backward(*conv)) }
int vssm_gla_forward(const vssm_gla* gla) { RUN(gla->isa, gla_forward(*gla)) }
int vssm_gla_backward(const vssm_gla* gla) { RUN(gla->isa, gla_backward(*gla)) }
int vssm_gla_block_forward(const vssm_gla_block* block) { RUN(block->isa, gla_block_forward(*block)) }
int vssm_ssm_forward(const vssm_ssm* ssm) { RUN(ssm->isa, ssm_forward(*ssm)) }
int vssm_vim_blocks_forward(const vssm_vim_blocks* blocks) { RUN(blocks->isa, vim_blocks_forward(*blocks)) }
int vssm_vim_block_backward(const vssm_vim_block_gradients* gradients) {
    RUN(gradients->branch.ssm.isa, vim_block_backward(*gradients))
}
int vssm_mlp_forward(const vssm_mlp* mlp) { RUN(mlp->isa, mlp_forward(*mlp)) }
int vssm_patch_embed_forward(const vssm_patch_embed* patch_embed) {
    RUN(patch_embed->isa, patch_embed_forward(*patch_embed))
}

void vssm_flush_denormals([[maybe_unused]] int32_t threads, [[maybe_unused]] int32_t on) {
#if defined(__SSE2__)
    static thread_local unsigned before = _mm_getcsr();
#pragma omp parallel num_threads(threads)
    {
        if (on) before = _mm_getcsr();
        _mm_setcsr(on ? before | 0x8040 : before);
    }
#endif
}
