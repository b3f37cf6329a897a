#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/bf16.h"
#include "model/config.h"

namespace gemma {

/// How weight matrices are stored.
enum class WeightType : std::uint8_t { kBf16 };

std::string_view name_of(WeightType type);  ///< "bf16"

/// @throws Error naming the types there are, if the name is of none.
WeightType parse_weight_type(std::string_view name);

/// A view of one weight matrix, row-major: y = W x with W of [rows, columns].
struct Matrix {
  WeightType type = WeightType::kBf16;
  int rows = 0;                ///< outputs
  int columns = 0;             ///< inputs
  const bf16* data = nullptr;  ///< [rows, columns]; 256-byte aligned

  std::span<const bf16> row(int index) const {
    return {data + static_cast<std::size_t>(index) * static_cast<std::size_t>(columns),
            static_cast<std::size_t>(columns)};
  }
  std::uint64_t bytes() const {
    return std::uint64_t{2} * static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns);
  }
};

/// Views of one layer's weights, in the order in which the forward pass meets them.
struct LayerWeights {
  std::span<const float> attention_norm;       ///< [hidden] before attention; the `1 +` is not in it
  Matrix qkv;                                  ///< [(heads + 2 * kv_heads) * head_dim, hidden]: queries, keys, values
  Matrix attention_out;                        ///< [hidden, heads * head_dim]
  std::span<const float> attention_post_norm;  ///< [hidden]
  std::span<const float> mlp_norm;             ///< [hidden]
  Matrix gate_up;                              ///< [2 * intermediate, hidden]: all of gate, then all of up
  Matrix down;                                 ///< [hidden, intermediate]
  std::span<const float> mlp_post_norm;        ///< [hidden]
};

struct Weights {
  Matrix embed;  ///< [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::span<const float> final_norm;  ///< [hidden]
  Matrix head;                        ///< [vocab, hidden]; the same view as `embed` when they are tied

  std::uint64_t bytes() const;  ///< of all weights, a tied head counted once
};

/// What a model brings along for generating text, from its generation_config.json and tokenizer_config.json.
struct GenerationDefaults {
  std::vector<int> stop_tokens;  ///< ids that end an answer; never empty for a converted model
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  bool is_chat = false;  ///< instruction-tuned: prompts are wrapped into the chat template unless told otherwise

  friend bool operator==(const GenerationDefaults&, const GenerationDefaults&) = default;
};

/// A model ready to be run: hyper-parameters, views of its weights, its tokenizer, and whatever keeps them in memory.
/// Copies are cheap and share the memory.
struct Model {
  Config config;
  GenerationDefaults defaults;
  Weights weights;
  std::string_view tokenizer;  ///< a serialised SentencePiece model; empty for a random model
  std::string name;            ///< the path it came from, or "the built-in demo model"; for messages
  std::uint64_t identity =
      0;  ///< differs between models that differ: a hash of the file's header (which has hashes of its tensors)
  std::shared_ptr<const void> storage;  ///< the mapping or the buffers behind the views
};

}  // namespace gemma
