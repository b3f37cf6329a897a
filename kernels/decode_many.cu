// Which kernels a decode step of many rows takes. They are compiled in files of their own, each for weights and a cache
// of one type.

#include "decode_many_kernel.cuh"

namespace gemma {

extern template void launch_decode_many_of<WeightType::kBf16, KvType::kBf16>(const DecodeModel&, int, cudaStream_t);
extern template void launch_decode_many_of<WeightType::kBf16, KvType::kQ8>(const DecodeModel&, int, cudaStream_t);
extern template void launch_decode_many_of<WeightType::kQ8, KvType::kBf16>(const DecodeModel&, int, cudaStream_t);
extern template void launch_decode_many_of<WeightType::kQ8, KvType::kQ8>(const DecodeModel&, int, cudaStream_t);
extern template void launch_decode_many_of<WeightType::kQ4, KvType::kBf16>(const DecodeModel&, int, cudaStream_t);
extern template void launch_decode_many_of<WeightType::kQ4, KvType::kQ8>(const DecodeModel&, int, cudaStream_t);

namespace {

template <WeightType kLayers>
void launch_with_cache(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (model.kv_type == KvType::kQ8) {
    launch_decode_many_of<kLayers, KvType::kQ8>(model, rows, stream);
  } else {
    launch_decode_many_of<kLayers, KvType::kBf16>(model, rows, stream);
  }
}

template <WeightType kLayers>
int most_rows_with_cache(const DecodeModel& model) {
  return model.kv_type == KvType::kQ8 ? most_rows_that_fit<kLayers, KvType::kQ8>(model)
                                      : most_rows_that_fit<kLayers, KvType::kBf16>(model);
}

}  // namespace

int most_rows_of_decode_many(const DecodeModel& model) {
  switch (model.layer_type) {
    case WeightType::kQ8:
      return most_rows_with_cache<WeightType::kQ8>(model);
    case WeightType::kQ4:
      return most_rows_with_cache<WeightType::kQ4>(model);
    default:
      return most_rows_with_cache<WeightType::kBf16>(model);
  }
}

void launch_decode_many(const DecodeModel& model, int rows, cudaStream_t stream) {
  switch (model.layer_type) {
    case WeightType::kQ8:
      return launch_with_cache<WeightType::kQ8>(model, rows, stream);
    case WeightType::kQ4:
      return launch_with_cache<WeightType::kQ4>(model, rows, stream);
    default:
      return launch_with_cache<WeightType::kBf16>(model, rows, stream);
  }
}

}  // namespace gemma
