// What all operators' C structures share. Everything in include/ is a plain C interface: no torch, no Python. Python
// mirrors the structures (ops/*/cpu.py); that both sides agree is checked by what layout.cpp tells of them.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define VSSM_API __declspec(dllexport)
#else
#define VSSM_API __attribute__((visibility("default")))
#endif

// Most steps between two saved states. The Python side allocates by the same number (ops/scan/contract.py).
#define VSSM_CHUNK 32
// Most taps of a convolution (ops/conv/cpu.py).
#define VSSM_MOST_TAPS 8

extern "C" {

enum vssm_dtype : int32_t { VSSM_FLOAT32 = 0, VSSM_BFLOAT16 = 1 };
enum vssm_isa : int32_t {
    VSSM_ISA_BEST = -1,
    VSSM_ISA_PORTABLE = 0,
    VSSM_ISA_AVX2 = 1,
    VSSM_ISA_AVX512 = 2,
    VSSM_ISA_AVX512BF16 = 3,
};
enum vssm_norm : int32_t { VSSM_NORM_RMS = 0, VSSM_NORM_LAYER = 1 };

// What every kernel returns; unless it is VSSM_DONE nothing was written.
enum vssm_status : int32_t { VSSM_DONE = 0, VSSM_MISSING_ISA = 1, VSSM_NO_MEMORY = 2 };

// [B, K, L, last], the last axis contiguous, strides counted in elements; a direction stride of 0 means that all
// directions share the tensor. Absent when data is null.
struct vssm_tensor {
    void* data;
    int64_t batch_stride, direction_stride, token_stride;
    int32_t dtype;
};

// Step t visits token start + (t / inner_count) * outer_stride + (t % inner_count) * inner_stride and writes its output
// at the token that the same formula gives with the write_ fields. With reset the state is zero before each inner run.
struct vssm_walk {
    int64_t start, inner_count, inner_stride, outer_stride, length, reset;
    int64_t write_start, write_inner_stride, write_outer_stride;
};

// Which tokens the walks visit, and write: each walk all of them; all walks together every token once; or neither,
// and then results that directions share arrive zeroed and are added to.
enum vssm_cover : int32_t { VSSM_COVER_EACH = 0, VSSM_COVER_ONCE = 1, VSSM_COVER_SOME = 2 };
}
