#include "device/cuda_support.h"

namespace gemma {

std::string why_not_on_cuda(const Model& model, KvType cache) {
  const Config& config = model.config;
  struct Width {
    const char* name;
    int columns;
  };
  for (const auto& [name, columns] :
       {Width{"the hidden size", config.hidden_size}, Width{"the intermediate size", config.intermediate_size},
        Width{"heads times head size", config.query_size()}}) {
    if (columns % 32 != 0) return std::string(name) + " is " + std::to_string(columns) + ", not a multiple of 32";
  }
  const WeightTypes types = model.weights.types();
  const bool is_usual_q4 = types == WeightTypes{.layers = WeightType::kQ4, .embed = WeightType::kQ8};
  if (types.embed != types.layers && !is_usual_q4) {
    const std::string layers(name_of(types.layers));
    return "its layers are in " + layers + " and its embedding in " + std::string(name_of(types.embed)) +
           ", for which it has no kernels (gemma-convert --type " + layers +
           " without --embed-type makes a file that " + "it can run)";
  }
  if (cache == KvType::kF32) return "it keeps its cache in bf16 or q8, not in f32 (leave out --kv-type)";
  return {};
}

}  // namespace gemma
