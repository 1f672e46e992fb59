// The first layer of a Vim in one call, for inference: patches of images, embedded, among class tokens, with positions.
//
//   out = (weight patch + bias, or a class row) + position
//
// images [B, C, H, W], weight [D, C, P, P], positions [L, D], out [B, L, D]; L counts patches and class tokens. A patch
// that reaches beyond the image is zero there. Everything but the products' sides is float32.
#pragma once

#include "include/types.h"

extern "C" {

struct vssm_patch_embed {
    int64_t batch, channels, height, width;          // B, C, and of the images
    int64_t side, stride;                            // P, and pixels between patches
    int64_t rows, columns;                           // of patches
    int64_t embed;                                   // D
    int64_t classes;                                 // T class tokens
    int64_t batch_stride, channel_stride, row_stride;  // of the images, in elements; pixels of a row are neighbours
    int32_t threads;
    int32_t isa;                                     // vssm_isa
    int32_t dtype;                                   // vssm_dtype of the images and all parameters
    const void* images;                              // [B, C, H, W]
    const void* weight;                              // [D, C, P, P]
    const void* bias;                                // [D] or null
    const void* class_rows;                          // [T, D]
    const void* positions;                           // [L, D], L = rows * columns + T
    const int64_t* places;                           // [T]: the class tokens', ascending
    vssm_tensor out;                                 // [B, 1, L, D], float32
};

VSSM_API int vssm_patch_embed_forward(const vssm_patch_embed* patch_embed);
}
