#pragma once

// How the kernels that decode are launched: one block on each multiprocessor, all at once, since they wait for each
// other.

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <type_traits>

#include "cuda_error.h"
#include "decode.cuh"
#include "gemma/error.h"
#include "stream.cuh"

namespace gemma {

inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

/// Bytes that one block can have.
inline int shared_memory_of_block() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

/// Compute capability, as __CUDA_ARCH__ has it, of the code that the present GPU runs: it may be older than the GPU.
int architecture_of_code();

template <class... Parameters>
void launch_on_all_multiprocessors(void (*kernel)(Parameters...), int shared_bytes, cudaStream_t stream,
                                   const std::type_identity_t<Parameters>&... parameters) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors()));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  // All blocks must run at once: they wait for each other.
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, parameters...));
}

/// Refuses a GPU whose blocks have too little shared memory for a stream of `needed` stages.
inline void check_stages(int stages, int needed) {
  if (stages >= needed) return;
  throw Error("this GPU's blocks have " + std::to_string(shared_memory_of_block() / 1024) +
              " KB of shared memory, too little for so many rows of this model; use --device cpu");
}

/// launch_decode for up to kFewRows rows, and layers and a cache of one type each: decode_bf16.cu, decode_bf16_kv_q8.cu
/// and so on. The beginning of DecodeModel::exchange must be zero.
template <WeightType kLayers, KvType kKv>
void launch_decode_few(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kBf16, KvType::kBf16>(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kBf16, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kQ8, KvType::kBf16>(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kQ8, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kQ4, KvType::kBf16>(const DecodeModel& model, int rows, cudaStream_t stream);
template <>
void launch_decode_few<WeightType::kQ4, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream);

/// launch_decode for any number of rows: decode_many.cu. The counter of the grid barrier must be zero.
void launch_decode_many(const DecodeModel& model, int rows, cudaStream_t stream);

/// The most rows that launch_decode_many takes on the present GPU, of a model as max_decode_rows() takes it; 0: none.
int most_rows_of_decode_many(const DecodeModel& model);

}  // namespace gemma
