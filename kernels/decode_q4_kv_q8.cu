// decode_kernel.cuh for layers in q4, whose head may be in q8, and a cache in q8.

#include "decode_kernel.cuh"

namespace gemma {

template <>
void launch_decode_few<WeightType::kQ4, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (model.head_type == WeightType::kQ8) {
    launch<WeightType::kQ4, WeightType::kQ8, KvType::kQ8>(model, rows, stream);
  } else {
    launch<WeightType::kQ4, WeightType::kQ4, KvType::kQ8>(model, rows, stream);
  }
}

}  // namespace gemma
