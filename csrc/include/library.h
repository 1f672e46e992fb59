// What the library tells about itself, and one switch for its threads.
#pragma once

#include "include/types.h"

extern "C" {

// Changes with the meaning of any call; that the structures are the same on both sides is checked apart, below.
VSSM_API int32_t vssm_abi_version(void);

// How a structure of include/ lies in memory: "SIZE FIELD@OFFSET+SIZE FIELD@OFFSET+SIZE ...", or null for an unknown
// one.
VSSM_API const char* vssm_layout(const char* structure);

// The value of a constant of include/types.h, or INT64_MIN for an unknown one.
VSSM_API int64_t vssm_constant(const char* name);

// The instruction set that VSSM_ISA_BEST stands for here, and whether an instruction set can be asked for by name.
VSSM_API int32_t vssm_best_isa(void);
VSSM_API int32_t vssm_has_isa(int32_t isa);

// From a call with `on` to the next without, the threads of the calling thread's team take denormal numbers for zero,
// in whatever they run; then they do as before.
VSSM_API void vssm_flush_denormals(int32_t threads, int32_t on);
}
