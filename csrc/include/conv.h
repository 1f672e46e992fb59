// Depthwise causal convolution along the token sequence, channel-last, with SiLU: forward and backward.
//
//   a[t] = bias + sum_j weight[j] x[t - (taps - 1) + j]        y[t] = silu(a[t])
//
// x [B, L, C], weight [K, C, taps], bias [K, C], y [B, K, L, C]: K directions read the same x; a reversed direction
// looks towards the end of the sequence. At most VSSM_MOST_TAPS taps; SiLU where asked for.
#pragma once

#include "include/types.h"

extern "C" {

struct vssm_conv {
    int64_t batch, directions, tokens, channels, taps;
    int64_t groups;          // tasks that one image's tokens are split into
    int32_t threads;
    int32_t isa;             // vssm_isa
    int32_t activation;      // apply SiLU
    const int32_t* reverse;  // [K]
    const float* weight;     // [K, taps, C]
    const float* bias;       // [K, C]
    vssm_tensor x;           // [B, 1, L, C]
    vssm_tensor y;           // forward: [B, K, L, C]
    vssm_tensor grad;        // backward: like y
    vssm_tensor dx;          // backward: float32, like x
    float* dparameters;      // backward: [B, groups, K, taps + 1, C], the last row is the bias's
};

VSSM_API int vssm_conv_forward(const vssm_conv* conv);
VSSM_API int vssm_conv_backward(const vssm_conv* conv);
}
