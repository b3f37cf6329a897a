#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "model/model.h"

namespace gemma {

/// The type of a matrix, by its name in a .gemma file.
inline WeightType type_of(std::string_view matrix, WeightTypes types) {
  return matrix == "embed" || matrix == "head" ? types.embed : types.layers;
}

/// Visits every weight in the order of a .gemma file: the one place that knows their names and shapes.
///
/// @param weights  gets as many layers as the configuration has.
/// @param visit    called with (name, Matrix&, rows, columns) and (name, std::span<const float>& norm, size).
template <typename Visitor>
void visit_weights(const Config& config, Weights& weights, Visitor&& visit) {
  const int hidden = config.hidden_size;
  weights.layers.resize(config.layers.size());
  visit("embed", weights.embed, config.vocab_size, hidden);
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string prefix = "layers." + std::to_string(i);
    visit(prefix + ".attn.norm", layer.attention_norm, hidden);
    visit(prefix + ".attn.qkv", layer.qkv, config.qkv_size(), hidden);
    visit(prefix + ".attn.out", layer.attention_out, hidden, config.query_size());
    visit(prefix + ".attn.post_norm", layer.attention_post_norm, hidden);
    visit(prefix + ".mlp.norm", layer.mlp_norm, hidden);
    visit(prefix + ".mlp.gate_up", layer.gate_up, 2 * config.intermediate_size, hidden);
    visit(prefix + ".mlp.down", layer.down, hidden, config.intermediate_size);
    visit(prefix + ".mlp.post_norm", layer.mlp_post_norm, hidden);
  }
  visit("final_norm", weights.final_norm, hidden);
  if (config.is_embedding_tied) {
    weights.head = weights.embed;
  } else {
    visit("head", weights.head, config.vocab_size, hidden);
  }
}

}  // namespace gemma
