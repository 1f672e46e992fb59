// The selective scan.
//
//   h[t] = exp(delta[t] A) * h[t-1] + delta[t] B[t] u[t]        y[t] = C[t] . h[t] + D u[t]
//   delta = softplus(delta + bias) where asked for              y = y * silu(z) where there is a z
//
// walked over the tokens of a map in any affine order (vssm_walk). B images, K directions, L tokens in memory order,
// C channels, N states per channel; u, delta, y [B, K, L, C], B and C [B, K, L, N], A [K, C, N], D [K, C]. Inputs and
// outputs are float32 or bfloat16; states, sums and parameters are float32.
#pragma once

#include "include/types.h"

extern "C" {

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

VSSM_API int vssm_scan_forward(const vssm_scan* scan);
VSSM_API int vssm_scan_backward(const vssm_scan* scan);
}
