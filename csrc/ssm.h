// The selective SSM in one pass, for inference: causal convolution, projections, step size, scan, gate and sum of the
// directions, a tile of tokens at a time, so that nothing between x and y goes through memory.
//
//   u = silu(conv(x)) (or x)     (dt, B, C) = x_proj u     delta = softplus(dt_proj dt + dt_bias)     y = scan, gated
//
// The parameters come as the layer holds them and are rearranged in every call, which costs little beside the scan.
#pragma once

#include "scan.h"

extern "C" {

struct vssm_ssm {
    int64_t batch, directions, tokens, channels, states, rank;
    int64_t taps;             // of the convolution; 0 for none
    int64_t convolutions;     // sets of convolution parameters: K, or 1 shared by all directions
    int64_t projections;      // the same for everything else but A
    int32_t threads;
    int32_t isa;              // vssm_isa
    int32_t cover;            // VSSM_COVER_EACH or VSSM_COVER_ONCE
    int32_t parameter_dtype;  // vssm_dtype of all parameters
    // vssm_dtype that both sides of a block's products with in_proj, x_proj and out_proj are rounded to, where the
    // instruction set multiplies it; they sum in float32. The SSM alone is called with float32.
    int32_t product_dtype;
    const vssm_walk* walks;   // [K]
    const int32_t* reverse;   // [K]: the convolution looks towards the end of the sequence; null without convolution
    const void* conv_weight;  // [K or 1, C, taps]
    const void* conv_bias;    // [K or 1, C]
    const void* x_proj;       // [K or 1, R + 2N, C]
    const void* dt_proj;      // [K or 1, C, R]
    const void* dt_bias;      // [K or 1, C]
    const void* a_log;        // [K, C, N]
    const void* skip;         // [K or 1, C]
    vssm_tensor x;            // [B, 1, L, C]
    vssm_tensor z;            // [B, 1, L, C] or absent
    vssm_tensor y;            // [B, 1, L, C]
    vssm_tensor sum;          // float32 running sum of the directions when y cannot hold it, else y itself
};

enum vssm_norm : int32_t { VSSM_NORM_RMS = 0, VSSM_NORM_LAYER = 1 };

// The whole residual branch of a Vim block around it, from the stream and back:
//
//   (x, z) = in_proj norm(stream)     out = stream + scale * gamma * out_proj y
//
// Every walk is the sequence, forwards or backwards.
struct vssm_branch {
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
struct vssm_column {
    int64_t batch, count;
    int64_t chosen;                      // rows to normalise, or 0
    int32_t threads;
    int32_t isa;                         // vssm_isa
    const vssm_branch* const* branches;  // [count]
    vssm_tensor stream;                  // [B, 1, L, D], float32
    vssm_tensor out;                     // the same, or the stream itself
    const int64_t* rows;                 // [chosen]: tokens
    int32_t norm;                        // vssm_norm
    float eps;
    const void* norm_weight;             // [D], of the blocks' parameter dtype
    const void* norm_bias;               // [D] or null
    vssm_tensor normed;                  // [B, 1, chosen, D], float32
};

// The way back through such a branch; float32 parameters, and no gamma. Products with in_proj and out_proj go by the
// product dtype. The gradients of those two are products over all tokens, dxz^T normed and grad^T gated, and left
// to the caller. Every sum runs in an order that depends on shapes and threads only.
struct vssm_branch_gradients {
    vssm_branch branch;    // of the forward pass, with what that left; with batch, threads and isa in its ssm
    vssm_tensor stream;    // [B, 1, L, D]
    vssm_tensor grad;      // [B, 1, L, D]: of the branch's result
    vssm_tensor dstream;   // [B, 1, L, D]
    vssm_tensor normed;    // [B, 1, L, D]: what in_proj takes
    vssm_tensor gated;     // [B, 1, L, C]: what out_proj takes, times the branch's scale
    vssm_tensor dxz;       // [B, 1, L, 2C]: of what in_proj yields
    int64_t groups;        // of images whose gradients of parameters are summed apart: threads, or 1 with fewer images
    // These arrive as zeros. [groups][K][rows][C], the rows of a group being those of A_log (N), D, dt_bias, the
    // convolution's taps and bias, x_proj (R + 2N) and dt_proj (R); and [threads][2][D] of the norm's weight and bias.
    float* parameters;
    float* norm_parameters;
};

VSSM_API int vssm_ssm_forward(const vssm_ssm* ssm);
VSSM_API int vssm_column_forward(const vssm_column* column);
VSSM_API int vssm_branch_backward(const vssm_branch_gradients* gradients);
}
