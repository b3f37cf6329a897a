#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "gemma/error.h"

namespace gemma {

/// Turns a CUDA return code that is not success into an Error that says what failed and where.
inline void check_cuda(cudaError_t code, const std::source_location& where = std::source_location::current()) {
  if (code == cudaSuccess) return;
  std::string file = where.file_name();
  file.erase(0, file.find_last_of('/') + 1);
  throw Error(std::string("the GPU reports: ") + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ", " +
              file + ":" + std::to_string(where.line()) + ")");
}

}  // namespace gemma
