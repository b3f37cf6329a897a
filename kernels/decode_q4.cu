// decode_kernel.cuh for layers in q4, whose head may be in q8, and a cache in bf16.

#include "decode_kernel.cuh"

namespace gemma {

template <>
void launch_decode_few<WeightType::kQ4, KvType::kBf16>(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (model.head_type == WeightType::kQ8) {
    launch<WeightType::kQ4, WeightType::kQ8, KvType::kBf16>(model, rows, stream);
  } else {
    launch<WeightType::kQ4, WeightType::kQ4, KvType::kBf16>(model, rows, stream);
  }
}

}  // namespace gemma
