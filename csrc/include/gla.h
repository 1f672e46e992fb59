// Gated linear attention.
//
//   S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T        o[t] = scale S[t]^T q[t]
//
// for each head, walked over the tokens of a map in any affine order (vssm_walk). B images, K directions, L tokens in
// memory order, H heads of N key and V value channels; q and k [B, L, H N], v [B, L, H V], log-gates g [B, K, L, H N].
// q, k, v and the gradient of o are float32 or bfloat16; all else is float32.
#pragma once

#include "include/types.h"

extern "C" {

struct vssm_gla {
    int64_t batch, directions, tokens, heads, keys, values;
    int64_t groups;          // tasks that the values of a head are split into (forward)
    int32_t threads;
    int32_t isa;             // vssm_isa
    int32_t merge;           // sum the directions
    int32_t cover;           // vssm_cover; a direction's own results arrive zeroed unless it is VSSM_COVER_EACH
    float scale;
    const vssm_walk* walks;  // [K]
    vssm_tensor q, k, v;     // direction stride 0
    vssm_tensor gates;
    vssm_tensor y;           // forward; merged: direction stride 0
    vssm_tensor grad;        // backward: like y
    vssm_tensor dq, dk, dv;  // backward: direction stride 0
    vssm_tensor dgates;      // backward: like gates
};

VSSM_API int vssm_gla_forward(const vssm_gla* gla);
VSSM_API int vssm_gla_backward(const vssm_gla* gla);
}
