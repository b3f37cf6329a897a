#include "bench/floor.h"

#include <algorithm>

#include "device/attention_mask.h"

namespace gemma {
namespace {

/// Keys that the queries of a prompt see, all added up.
double seen_keys(int window, int tokens) {
  const double inside = std::min(window, tokens);  // queries that see all before them
  return inside * (inside + 1) / 2 + (tokens - inside) * window;
}

/// Positions that a query sees, all layers added up.
double seen_positions(const Config& config, int window, int context) {
  return static_cast<double>(config.local_layer_count()) * std::min(window, context) +
         static_cast<double>(config.global_layer_count()) * context;
}

/// Of the cache, what the rows' queries see.
double cache_bytes(const Config& config, int window, int context, int rows, KvType type) {
  const double position = 2.0 * static_cast<double>(head_bytes(type, config.head_dim)) * config.kv_heads;
  return rows * position * seen_positions(config, window, context);
}

double weights_without_embedding(const Model& model) {
  const std::uint64_t head = model.config.is_embedding_tied ? 0 : model.weights.head.bytes();
  return static_cast<double>(model.weights.bytes() - model.weights.embed.bytes() - head);
}

}  // namespace

Cost decode_cost(const Model& model, int window, int context, int rows, KvType type) {
  const Config& config = model.config;
  const double parameters =
      static_cast<double>(config.other_parameters()) + static_cast<double>(config.vocab_size) * config.hidden_size;
  return {.bytes = weights_without_embedding(model) + static_cast<double>(model.weights.head.bytes()) +
                   cache_bytes(config, window, context, rows, type),
          .flop = rows * (2 * parameters + 4.0 * config.query_size() * seen_positions(config, window, context))};
}

double bytes_of_part(const Model& model, std::string_view part, int window, int context, int rows, KvType type) {
  if (part == "attend") return cache_bytes(model.config, window, context, rows, type);
  if (part == "logits") return static_cast<double>(model.weights.head.bytes());
  std::uint64_t bytes = 0;
  for (const LayerWeights& layer : model.weights.layers) {
    if (part == "qkv") bytes += layer.qkv.bytes();
    if (part == "attention_out") bytes += layer.attention_out.bytes();
    if (part == "gate_up" || part == "mlp") bytes += layer.gate_up.bytes();
    if (part == "down" || part == "mlp") bytes += layer.down.bytes();
  }
  return static_cast<double>(bytes);
}

double attention_flop(const Config& config, int window, int tokens) {
  return 4.0 * config.query_size() * seen_keys(window, tokens);
}

Cost prompt_cost(const Model& model, int window, int tokens, int chunk) {
  const Config& config = model.config;
  const int chunks = (tokens + chunk - 1) / chunk;
  return {.bytes = chunks * weights_without_embedding(model),
          .flop = 2.0 * static_cast<double>(config.other_parameters()) * tokens +
                  config.local_layer_count() * attention_flop(config, window, tokens) +
                  config.global_layer_count() * attention_flop(config, kNoWindow, tokens)};
}

}  // namespace gemma
