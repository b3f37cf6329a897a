#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace gemma {

/// Reads `bytes` bytes, a multiple of 16, once, as fast as they can be had: what reading weights is held against.
/// @param sum  [1] depends on all that was read, so that nothing is left out
void launch_read_memory(const void* memory, std::size_t bytes, unsigned* sum, cudaStream_t stream);

}  // namespace gemma
