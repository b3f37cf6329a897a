#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace gemma {

enum class LayerKind : std::uint8_t {
  kLocal,   ///< sliding-window attention: a query sees the `window` newest positions, itself included
  kGlobal,  ///< attention over all positions
};

/// Gemma 2's hyper-parameters: everything that the forward pass needs besides the weights.
///
/// `hidden_size`, `heads * head_dim` and `heads / kv_heads` are independent of each other: the 2B model has a hidden
/// size of 2304, but 8 heads of 256 (2048).
struct Config {
  std::string name;                  ///< for people: "gemma-2-2b-it"; may be empty
  int hidden_size = 0;               ///< width of the residual stream
  int intermediate_size = 0;         ///< rows of gate and of up in the feed-forward block
  int heads = 0;                     ///< query heads; a multiple of kv_heads
  int kv_heads = 0;                  ///< key and value heads
  int head_dim = 0;                  ///< size of one head; a multiple of 16, 16 to 256
  int vocab_size = 0;                ///< rows of the embedding
  int window = 0;                    ///< keys that a query of a local layer sees, itself included; at least 1
  int context = 0;                   ///< positions that the model was trained for
  double rope_theta = 10000.0;       ///< base of the rotary frequencies
  double rms_norm_eps = 1e-6;        ///< added to the mean square before the root
  double query_pre_attn_scalar = 0;  ///< queries are multiplied by this to the power -0.5
  std::optional<float> attention_softcap = 50;  ///< s = cap * tanh(s / cap); nullopt: none
  std::optional<float> final_softcap = 30;      ///< the same for the logits
  bool is_embedding_tied = true;                ///< the head is the embedding
  std::vector<LayerKind> layers;                ///< kind of each layer, first to last

  int layer_count() const { return static_cast<int>(layers.size()); }
  int local_layer_count() const;
  int global_layer_count() const { return layer_count() - local_layer_count(); }
  int query_size() const { return heads * head_dim; }  ///< width of all queries of a row
  int kv_size() const { return kv_heads * head_dim; }  ///< width of all keys (or values) of a row
  int qkv_size() const { return query_size() + 2 * kv_size(); }

  /// The factor on embeddings: sqrt(hidden_size) rounded to bf16, as google/gemma_pytorch does it.
  float embedding_scale() const;

  /// Parameters in the embedding, and in everything else (norms included).
  std::int64_t embedding_parameters() const;
  std::int64_t other_parameters() const;

  /// @throws Error naming the first hyper-parameter that is out of range or inconsistent. Upper limits are generous (a
  /// size that fits the checks cannot overflow the arithmetic that the loader does with it).
  void validate() const;

  friend bool operator==(const Config&, const Config&) = default;
};

/// The published shapes: "2b", "9b" or "27b".
/// @throws Error for any other name.
Config config_of_shape(const std::string& shape);

/// Gemma 2's own order: local, global, local, ... starting with local.
std::vector<LayerKind> alternating_layers(int count);

}  // namespace gemma
