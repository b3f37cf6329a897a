#pragma once

/// The instruction sets that the kernels are compiled for: SSE4, AVX2 and AVX-512 (Highway's AVX3) on x86, NEON on Arm,
/// and whatever the compiler's baseline is. Everything else is left out because it would only add compile time: SSSE3
/// (bit 12), x86 targets better than AVX3 (bits 0 to 7), Arm targets better than NEON (bits 15 to 27; scalable vectors
/// among them, which could not be array elements). Numbers, because not every version of Highway has all the names;
/// they never change. Include this before any of Highway's headers.
#define HWY_DISABLED_TARGETS ((1LL << 12) | 0xffLL | (((1LL << 28) - 1) & ~((1LL << 15) - 1)))

#include <hwy/targets.h>
