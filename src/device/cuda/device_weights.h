#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <vector>

#include "decode.cuh"
#include "device/cuda/handles.h"
#include "model/model.h"

namespace gemma::cuda {

/// A model's weights in the GPU's memory, laid out as in the file: matrices row-major in bf16, norms in float32.
class DeviceWeights {
 public:
  /// Bytes of GPU memory that the weights of a model take.
  static std::size_t bytes(const Model& model);

  /// Copies the weights: several threads fill pinned buffers, and the copy engine empties them meanwhile.
  /// @throws Error if the GPU has too little memory, or a copy fails.
  explicit DeviceWeights(const Model& model);

  const __nv_bfloat16* embed() const { return embed_; }
  const __nv_bfloat16* head() const { return head_; }
  const float* final_norm() const { return final_norm_; }
  const std::vector<DecodeLayer>& layers() const { return layers_; }

 private:
  Buffer<std::byte> memory_;
  const __nv_bfloat16* embed_ = nullptr;
  const __nv_bfloat16* head_ = nullptr;
  const float* final_norm_ = nullptr;
  std::vector<DecodeLayer> layers_;
};

}  // namespace gemma::cuda
