// A block of bidirectional gated linear attention in one call, for inference: from the stream of a map and back to it.
//
//   l = DWConv3x3 norm(x), SiLU of it if asked for        q, k, v = qkv_proj l
//   g_o = logsigmoid(gate_up gate_down l + b_o) / 16      o in (forward, backward): the halves of gate_up's outputs
//   a = sum over o of the attention of gla.h, along the tokens row by row
//   m = RMSNorm_l(l) + sigmoid(g_proj l + b_g) (RMSNorm_g(a) - RMSNorm_l(l)), per head; SiLU of it if asked for
//   s = x + o_proj m                                      out = s + fc2 (SiLU(c) d),   (c, d) = fc1 norm2(s)
//
// x, out [B, L, C], L = height width; H heads of C / H value and half as many key channels; R values that gates come
// from; I hidden values. Everything between the products is float32.
#pragma once

#include "include/types.h"

extern "C" {

struct vssm_gla_block {
    int64_t batch, height, width;         // B, of the map
    int64_t channels, heads, rank, hidden;  // C, H, R, I
    int32_t threads;
    int32_t isa;                          // vssm_isa
    int32_t conv_act, out_act;            // apply SiLU
    int32_t parameter_dtype;              // vssm_dtype of all parameters
    int32_t product_dtype;                // as in vssm_ssm
    int32_t norm, norm2;                  // vssm_norm
    float eps, eps2, g_eps, l_eps;        // of the four norms
    float scale;                          // of the attention
    const void* norm_weight;              // [C]
    const void* norm_bias;                // [C] or null
    const void* conv;                     // [C, 9]
    const void* qkv_proj;                 // [2C, C]
    const void* gate_down;                // [R, C]
    const void* gate_up;                  // [C, R]
    const void* gate_bias;                // [C]
    const void* g_proj;                   // [C, C]
    const void* g_bias;                   // [C]
    const void* g_norm;                   // [C / H]
    const void* l_norm;                   // [C / H]
    const void* o_proj;                   // [C, C]
    const void* norm2_weight;             // [C]
    const void* norm2_bias;               // [C] or null
    const void* fc1;                      // [2I, C]
    const void* fc2;                      // [C, I]
    vssm_tensor x, out;                   // [B, 1, L, C], of one dtype
};

VSSM_API int vssm_gla_block_forward(const vssm_gla_block* block);
}
