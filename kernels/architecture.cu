// Which code the GPU runs: each kernel is compiled for several compute capabilities, all kernels for the same ones.

#include <cuda_runtime.h>

#include "cuda_error.h"
#include "decode_launch.cuh"

namespace gemma {
namespace {

__global__ void compiled_as_all_others() {}

}  // namespace

int architecture_of_code() {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, compiled_as_all_others));
  return 10 * attributes.ptxVersion;
}

}  // namespace gemma
