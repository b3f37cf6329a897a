#pragma once

#include <cuda.h>

#include <cstddef>
#include <vector>

#include "decode.cuh"
#include "device/cuda/handles.h"
#include "model/model.h"

namespace gemma::cuda {

/// A model's weights in the GPU's memory: matrices of bf16 row-major, as in the file, quantised ones packed
/// (kernels/packed_weights.cuh), norms in float32.
class DeviceWeights {
 public:
  /// Bytes of GPU memory that the weights of a model take.
  static std::size_t bytes(const Model& model);

  /// Bytes more that loading them takes at most, until the constructor ends.
  static std::size_t staging_bytes(const Model& model);

  /// Copies the weights: several threads fill pinned buffers, the copy engine empties them meanwhile, and quantised
  /// matrices are packed as they arrive.
  /// @throws Error if the GPU has too little memory, or a copy fails.
  explicit DeviceWeights(const Model& model);

  WeightTypes types() const { return types_; }
  const void* embed() const { return embed_; }  ///< [vocab, hidden]
  const StreamedMatrix& head() const { return head_; }
  const float* final_norm() const { return final_norm_; }
  const std::vector<DecodeLayer>& layers() const { return layers_; }

 private:
  void make_tensor_maps();

  Buffer<std::byte> memory_;
  Buffer<CUtensorMap> tensor_maps_;  // of matrices of bf16; empty before Hopper
  WeightTypes types_;
  const void* embed_ = nullptr;
  StreamedMatrix head_{};
  const float* final_norm_ = nullptr;
  std::vector<DecodeLayer> layers_;
};

}  // namespace gemma::cuda
