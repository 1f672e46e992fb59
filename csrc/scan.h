// The selective scan on the CPU behind a plain C interface: no torch, no Python.
//
//   h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t]        y[t] = C[t] . h[t] + D u[t]
//
// walked over the tokens of a map in any affine order (vssm_walk). B images, K directions, L tokens in memory order,
// C channels, N states per channel. Every tensor is channel-last: its last axis is contiguous, the others have
// strides counted in elements. Inputs and outputs are float32 or bfloat16; states, sums and parameters are float32.
#pragma once

#include <cstdint>

// Most steps between two saved states. The Python side allocates by the same number (ops/contract.py).
#define VSSM_CHUNK 32

extern "C" {

enum vssm_dtype : int32_t { VSSM_FLOAT32 = 0, VSSM_BFLOAT16 = 1 };
enum vssm_isa : int32_t {
    VSSM_ISA_BEST = -1,
    VSSM_ISA_PORTABLE = 0,
    VSSM_ISA_AVX2 = 1,
    VSSM_ISA_AVX512 = 2,
    VSSM_ISA_AVX512BF16 = 3,
};

// What every kernel returns; unless it is VSSM_DONE nothing was written.
enum vssm_status : int32_t { VSSM_DONE = 0, VSSM_MISSING_ISA = 1, VSSM_NO_MEMORY = 2 };

// [B, K, L, last]; a direction stride of 0 means that all directions share the tensor. Absent when data is null.
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

struct vssm_scan {
    int64_t batch, directions, tokens, channels, states;
    int64_t chunks;    // saved states per direction, of the direction that has most
    int64_t groups;    // tasks that one image's channels are split into
    int32_t threads;
    int32_t isa;       // vssm_isa
    int32_t softplus;  // apply softplus to delta + bias
    int32_t merge;     // sum the directions
    int32_t cover;     // vssm_cover; a direction's own results arrive zeroed unless it is VSSM_COVER_EACH
    const vssm_walk* walks;   // [K]
    const float* a;           // A [K, C, N]
    const float* skip;        // D [K, C] or null
    const float* bias;        // [K, C] or null
    vssm_tensor u, delta, b, c, z;
    float* saved;             // [B, K, chunks, N, C]; null when nothing is saved (forward)
    // forward
    vssm_tensor y;            // merged: direction stride 0
    vssm_tensor sum;          // float32 running sum of the directions when y cannot hold it (or y itself)
    // backward
    vssm_tensor grad;         // like y
    vssm_tensor du, ddelta, dz;  // float32 or the input's type; added to where directions share them
    float* db;                // [groups, B, K or 1, L, N]
    float* dc;
    int64_t db_directions, dc_directions;  // K, or 1 where the directions share B or C
    float* da;                // [B, K, N, C]
    float* dskip;             // [B, K, C]
    float* dbias;             // [B, K, C]
};

#if defined(_WIN32)
#define VSSM_API __declspec(dllexport)
#else
#define VSSM_API __attribute__((visibility("default")))
#endif

VSSM_API int vssm_scan_forward(const vssm_scan* scan);
VSSM_API int vssm_scan_backward(const vssm_scan* scan);

// The instruction set that VSSM_ISA_BEST stands for here, and whether an instruction set can be asked for by name.
VSSM_API int32_t vssm_best_isa(void);
VSSM_API int32_t vssm_has_isa(int32_t isa);
VSSM_API int32_t vssm_abi_version(void);

// From a call with `on` to the next without, the threads of the calling thread's team take denormal numbers for zero,
// in whatever they run; then they do as before.
VSSM_API void vssm_flush_denormals(int32_t threads, int32_t on);
}
