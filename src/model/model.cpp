#include "model/model.h"

#include "gemma/error.h"
#include "model/matrix_parts.h"
#include "model/quote.h"

namespace gemma {

std::string_view name_of(WeightType type) {
  switch (type) {
    case WeightType::kBf16:
      return "bf16";
    case WeightType::kQ8:
      return "q8";
    case WeightType::kQ4:
      return "q4";
  }
  return "";
}

WeightType parse_weight_type(std::string_view name) {
  for (const WeightType type : kWeightTypes) {
    if (name == name_of(type)) return type;
  }
  throw Error("there is no weight type " + in_quotes(std::string(name)) + "; this version knows bf16, q8 and q4");
}

std::uint64_t Matrix::bytes() const {
  std::uint64_t sum = 0;
  for (const MatrixPart& part : parts_of(type, rows, columns)) sum += part.bytes();
  return sum;
}

std::uint64_t Weights::bytes() const {
  auto norm_bytes = [](std::span<const float> norm) { return std::uint64_t{4} * norm.size(); };
  std::uint64_t sum = embed.bytes() + norm_bytes(final_norm);
  if (!head.is_same_as(embed)) sum += head.bytes();
  for (const LayerWeights& layer : layers) {
    sum += layer.qkv.bytes() + layer.attention_out.bytes() + layer.gate_up.bytes() + layer.down.bytes();
    sum += norm_bytes(layer.attention_norm) + norm_bytes(layer.attention_post_norm);
    sum += norm_bytes(layer.mlp_norm) + norm_bytes(layer.mlp_post_norm);
  }
  return sum;
}

}  // namespace gemma
