// decode_many_kernel.cuh for layers in bf16 and a cache in bf16.

#include "decode_many_kernel.cuh"

namespace gemma {

template void launch_decode_many_of<WeightType::kBf16, KvType::kBf16>(const DecodeModel&, int, cudaStream_t);

}  // namespace gemma
