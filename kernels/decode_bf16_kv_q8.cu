// decode_kernel.cuh for layers in bf16 and a cache in q8.

#include "decode_kernel.cuh"

namespace gemma {

template <>
void launch_decode_few<WeightType::kBf16, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream) {
  launch<WeightType::kBf16, WeightType::kBf16, KvType::kQ8>(model, rows, stream);
}

}  // namespace gemma
