#pragma once

#include <cuda.h>
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
  const StreamedMatrix& head() const { return head_; }
  const float* final_norm() const { return final_norm_; }
  const std::vector<DecodeLayer>& layers() const { return layers_; }

 private:
  void make_tensor_maps();

  Buffer<std::byte> memory_;
  Buffer<CUtensorMap> tensor_maps_;  // empty before Hopper
  const __nv_bfloat16* embed_ = nullptr;
  StreamedMatrix head_{};
  const float* final_norm_ = nullptr;
  std::vector<DecodeLayer> layers_;
};

}  // namespace gemma::cuda
