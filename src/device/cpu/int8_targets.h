#pragma once

#include "device/cpu/int8_kernels.h"

namespace gemma {

// The kernels of each instruction set, each in a file of its own. Highway 1.0.3 knows no dot products of bytes.
extern const Int8Kernels kInt8Portable;
#if defined(__x86_64__)
extern const Int8Kernels kInt8Avx512;
extern const Int8Kernels kInt8AvxVnni;
extern const Int8Kernels kInt8Avx2;
#elif defined(__aarch64__)
extern const Int8Kernels kInt8NeonDot;
extern const Int8Kernels kInt8Neon;
#endif

}  // namespace gemma
