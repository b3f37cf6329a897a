#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "gemma/error.h"
#include "model/bf16.h"

namespace gemma {
namespace {

void require(bool holds, const std::string& problem) {
  if (!holds) throw Error("the model's hyper-parameters make no sense: " + problem);
}

void require_range(const char* name, double value, double low, double high) {
  // Written so that NaN fails, too.
  if (value >= low && value <= high) return;
  char text[160];
  std::snprintf(text, sizeof text, "%s is %.9g, but must be between %.9g and %.9g", name, value, low, high);
  require(false, text);
}

}  // namespace

int Config::local_layer_count() const {
  return static_cast<int>(std::count(layers.begin(), layers.end(), LayerKind::kLocal));
}

float Config::embedding_scale() const { return to_float(to_bf16(std::sqrt(static_cast<float>(hidden_size)))); }

std::int64_t Config::embedding_parameters() const {
  return std::int64_t{vocab_size} * hidden_size * (is_embedding_tied ? 1 : 2);
}

std::int64_t Config::other_parameters() const {
  const std::int64_t hidden = hidden_size;
  const std::int64_t attention = hidden * qkv_size() + hidden * query_size();
  const std::int64_t mlp = 3 * hidden * intermediate_size;
  return layer_count() * (attention + mlp + 4 * hidden) + hidden;
}

void Config::validate() const {
  require_range("hidden_size", hidden_size, 1, 1 << 17);
  require_range("intermediate_size", intermediate_size, 1, 1 << 19);
  require_range("num_attention_heads", heads, 1, 1024);
  require_range("num_key_value_heads", kv_heads, 1, 1024);
  require_range("head_dim", head_dim, 16, 256);
  require_range("vocab_size", vocab_size, 1, 1 << 22);
  require_range("sliding_window", window, 1, 1 << 24);
  require_range("max_position_embeddings", context, 1, 1 << 24);
  require_range("num_hidden_layers", layer_count(), 1, 1024);
  require_range("rope_theta", rope_theta, 1, 1e12);
  require_range("rms_norm_eps", rms_norm_eps, 0, 1);
  require_range("query_pre_attn_scalar", query_pre_attn_scalar, 1e-6, 1e9);
  if (attention_softcap) require_range("attn_logit_softcapping", *attention_softcap, 1e-3, 1e9);
  if (final_softcap) require_range("final_logit_softcapping", *final_softcap, 1e-3, 1e9);
  require(head_dim % 16 == 0, "head_dim is " + std::to_string(head_dim) + ", but must be a multiple of 16");
  require(heads % kv_heads == 0, "num_attention_heads (" + std::to_string(heads) +
                                     ") is not a multiple of num_key_value_heads (" + std::to_string(kv_heads) + ")");
}

Config config_of_shape(const std::string& shape) {
  struct Shape {
    const char* name;
    int hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    double query_pre_attn_scalar;
  };
  static constexpr Shape kShapes[] = {
      {"2b", 2304, 9216, 26, 8, 4, 256, 256},
      {"9b", 3584, 14336, 42, 16, 8, 256, 256},
      {"27b", 4608, 36864, 46, 32, 16, 128, 144},
  };
  for (const Shape& known : kShapes) {
    if (shape != known.name) continue;
    Config config;
    config.name = "gemma-2-" + shape;
    config.hidden_size = known.hidden_size;
    config.intermediate_size = known.intermediate_size;
    config.heads = known.heads;
    config.kv_heads = known.kv_heads;
    config.head_dim = known.head_dim;
    config.vocab_size = 256000;
    config.window = 4096;
    config.context = 8192;
    config.query_pre_attn_scalar = known.query_pre_attn_scalar;
    config.layers = alternating_layers(known.layers);
    return config;
  }
  throw Error("there is no Gemma 2 shape '" + shape + "'; choose 2b, 9b or 27b");
}

std::vector<LayerKind> alternating_layers(int count) {
  std::vector<LayerKind> layers(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i] = i % 2 == 0 ? LayerKind::kLocal : LayerKind::kGlobal;
  return layers;
}

}  // namespace gemma
