// What the plug-in library shows to the program that loads it: see src/device/cuda_plugin.cpp.

#include <exception>
#include <memory>
#include <string>

#include "device/cuda/cuda_device.h"
#include "device/cuda/limits.h"
#include "gemma/error.h"

extern "C" {

/// Makes a device. @return nullptr if that fails, with the reason in `error`.
__attribute__((visibility("default"))) gemma::Device* gemma_make_cuda_device(const gemma::Model& model,
                                                                             const gemma::CudaOptions& options,
                                                                             std::string& error,
                                                                             bool& is_out_of_memory) {
  is_out_of_memory = false;
  try {
    gemma::check_cuda(cudaSetDevice(options.ordinal));
    return std::make_unique<gemma::cuda::CudaDevice>(model, options).release();
  } catch (const gemma::OutOfMemory& failure) {
    is_out_of_memory = true;
    error = failure.what();
  } catch (const std::exception& failure) {
    error = failure.what();
  }
  return nullptr;
}

/// Measures what the GPU can do. @return whether that worked, else the reason is in `error`.
__attribute__((visibility("default"))) bool gemma_measure_cuda_limits(int ordinal, gemma::DeviceLimits& limits,
                                                                      std::string& error) {
  try {
    gemma::check_cuda(cudaSetDevice(ordinal));
    limits = gemma::cuda::measure_limits();
    return true;
  } catch (const std::exception& failure) {
    error = failure.what();
    return false;
  }
}

/// How many GPUs there are. @return 0 if none, or no driver, with the reason in `error`.
__attribute__((visibility("default"))) int gemma_count_cuda_devices(std::string& error) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  error = code == cudaSuccess || code == cudaErrorNoDevice ? "this machine has no NVIDIA GPU"
          : code == cudaErrorInsufficientDriver ? "there is no NVIDIA driver, or it is older than this build's CUDA " +
                                                      std::to_string(CUDART_VERSION / 1000)
                                                : std::string("CUDA cannot be started: ") + cudaGetErrorString(code);
  return 0;
}

}  // extern "C"
