// The selective SSM in one pass, for inference: causal convolution, projections, step size, scan, gate and sum of the
// directions, a tile of tokens at a time, so that nothing between x and y goes through memory.
//
//   u = silu(conv(x)) (or x)     (dt, B, C) = x_proj u     delta = softplus(dt_proj dt + dt_bias)
//   h[t] = exp(-exp(A_log) delta[t]) * h[t-1] + delta[t] B[t] u[t]     y = (sum over directions of C h + D u) silu(z)
//
// x, z, y [B, L, C]; K directions, N states, dt of rank R: x_proj [K, R + 2N, C], dt_proj [K, C, R], A_log [K, C, N].
// The parameters come as the layer holds them and are packed in every call, which costs little beside the scan.
#pragma once

#include "include/types.h"

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

VSSM_API int vssm_ssm_forward(const vssm_ssm* ssm);
}
