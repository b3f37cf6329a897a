// decode_kernel.cuh for layers in q8 and a cache in q8.

#include "decode_kernel.cuh"

namespace gemma {

template <>
void launch_decode_few<WeightType::kQ8, KvType::kQ8>(const DecodeModel& model, int rows, cudaStream_t stream) {
  launch<WeightType::kQ8, WeightType::kQ8, KvType::kQ8>(model, rows, stream);
}

}  // namespace gemma
