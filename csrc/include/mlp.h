// The MLP branch of a block in one call, for inference: from the stream and back to it.
//
//   stream = x + added     out = stream + fc2 GELU(fc1 norm(stream))
//
// x, added, out [L, C], fc1 [H, C], fc2 [C, H]; the tokens of all images are one sequence. At most 64 tokens at a time,
// so that neither the normalised nor the hidden values go through memory; up to 256 tokens together, where threads take
// columns of their hidden values. Everything between the products is float32.
#pragma once

#include "include/types.h"

extern "C" {

struct vssm_mlp {
    int64_t tokens, width, hidden;  // L, C, H
    int32_t threads;
    int32_t isa;                    // vssm_isa
    int32_t norm;                   // vssm_norm
    int32_t parameter_dtype;        // vssm_dtype of all parameters
    int32_t product_dtype;          // as in vssm_ssm
    float eps;
    const void* norm_weight;        // [C]
    const void* norm_bias;          // [C] or null
    const void* fc1;                // [H, C]
    const void* fc1_bias;           // [H]
    const void* fc2;                // [C, H]
    const void* fc2_bias;           // [C]
    vssm_tensor x, added, out;      // [1, 1, L, C], all of one dtype
};

VSSM_API int vssm_mlp_forward(const vssm_mlp* mlp);
}
