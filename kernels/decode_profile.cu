// decode_kernel.cuh for one row, with clocks, for weights of all types.

#include "cuda_error.h"
#include "decode_kernel.cuh"
#include "gemma/error.h"

namespace gemma {
namespace {

template <WeightType kLayers, WeightType kHead>
void launch_with_clocks(const DecodeModel& model, cudaStream_t stream) {
  launch<1, kLayers, kHead, KvType::kBf16, PhaseClock>(model, 1, stream);
}

}  // namespace

void launch_decode_profiled(const DecodeModel& model, cudaStream_t stream) {
  if (model.kv_type != KvType::kBf16) throw Error("only a step with a cache in bf16 can be profiled");
  check_cuda(cudaMemsetAsync(model.exchange, 0, decode_exchange_size() * sizeof *model.exchange, stream));
  const bool has_q8_head = model.head_type == WeightType::kQ8;
  switch (model.layer_type) {
    case WeightType::kBf16:
      return launch_with_clocks<WeightType::kBf16, WeightType::kBf16>(model, stream);
    case WeightType::kQ8:
      return launch_with_clocks<WeightType::kQ8, WeightType::kQ8>(model, stream);
    case WeightType::kQ4:
      return has_q8_head ? launch_with_clocks<WeightType::kQ4, WeightType::kQ8>(model, stream)
                         : launch_with_clocks<WeightType::kQ4, WeightType::kQ4>(model, stream);
  }
}

}  // namespace gemma
