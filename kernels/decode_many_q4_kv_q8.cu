// decode_many_kernel.cuh for layers in q4, whose head may be in q8, and a cache in q8.

#include "decode_many_kernel.cuh"

namespace gemma {

template void launch_decode_many_of<WeightType::kQ4, KvType::kQ8>(const DecodeModel&, int, cudaStream_t);

}  // namespace gemma
