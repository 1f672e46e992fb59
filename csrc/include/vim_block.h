// The residual branch of a Vim block in one call, blocks one after the other, and the way back through one.
//
//   (x, z) = in_proj norm(stream)     y = SSM(x, z), see ssm.h     out = stream + scale * gamma * out_proj y
//
// stream, out [B, L, D]; x, z, y [B, L, C]; in_proj [2C, D], out_proj [D, C], gamma [D]. Every walk is the sequence,
// forwards or backwards. The stream, and all that goes from step to step, is float32.
#pragma once

#include "include/ssm.h"

extern "C" {

struct vssm_vim_block {
    vssm_ssm ssm;             // x, z, y and sum are unused, as are batch, threads and isa
    int64_t width;            // D, channels of the stream
    int32_t norm;             // vssm_norm
    float eps, scale;
    const void* norm_weight;  // [D]
    const void* norm_bias;    // [D] or null
    const void* in_proj;      // [2C, D]
    const void* out_proj;     // [D, C]
    const void* gamma;        // [D] or null
    // For a backward pass, all or none, but for xz, without which in_proj is done again:
    vssm_tensor sums;         // [B, 1, L, C], float32: the directions' results together, before the gate
    vssm_tensor xz;           // [B, 1, L, 2C], float32: what in_proj yields
    float* saved;             // [B, K, chunks, N, C]: the states before every chunk of VSSM_CHUNK steps
    float* projected;         // [B, K, L, R + 2N]: what x_proj yields
};

// Blocks one after the other, the first from `stream` to `out`, the others in place there. All have the sizes, walks
// and parameter dtype of the first. Some rows of the last result may be normalised besides.
struct vssm_vim_blocks {
    int64_t batch, count;
    int64_t chosen;                      // rows to normalise, or 0
    int32_t threads;
    int32_t isa;                         // vssm_isa
    const vssm_vim_block* const* branches;  // [count]: the blocks
    vssm_tensor stream;                  // [B, 1, L, D], float32
    vssm_tensor out;                     // the same, or the stream itself
    const int64_t* rows;                 // [chosen]: tokens
    int32_t norm;                        // vssm_norm
    float eps;
    const void* norm_weight;             // [D], of the blocks' parameter dtype
    const void* norm_bias;               // [D] or null
    vssm_tensor normed;                  // [B, 1, chosen, D], float32
};

// The way back through a block; float32 parameters, and no gamma. Products with in_proj and out_proj go by the
// product dtype. The gradients of those two are products over all tokens, dxz^T normed and grad^T gated, and left
// to the caller. Every sum runs in an order that depends on shapes and threads only.
struct vssm_vim_block_gradients {
    vssm_vim_block branch; // the block, with what the forward pass left; with batch, threads and isa in its ssm
    vssm_tensor stream;    // [B, 1, L, D]
    vssm_tensor grad;      // [B, 1, L, D]: of the block's result
    vssm_tensor dstream;   // [B, 1, L, D]
    vssm_tensor normed;    // [B, 1, L, D]: what in_proj takes
    vssm_tensor gated;     // [B, 1, L, C]: what out_proj takes, times the block's scale
    vssm_tensor dxz;       // [B, 1, L, 2C]: of what in_proj yields
    int64_t groups;        // of images whose gradients of parameters are summed apart: threads, or 1 with fewer images
    // These arrive as zeros. [groups][K][rows][C], the rows of a group being those of A_log (N), D, dt_bias, the
    // convolution's taps and bias, x_proj (R + 2N) and dt_proj (R); and [threads][2][D] of the norm's weight and bias.
    float* parameters;
    float* norm_parameters;
};

VSSM_API int vssm_vim_blocks_forward(const vssm_vim_blocks* blocks);
VSSM_API int vssm_vim_block_backward(const vssm_vim_block_gradients* gradients);
}
