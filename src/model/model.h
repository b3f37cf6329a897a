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
#include "model/f16.h"

namespace gemma {

/// How weight matrices are stored. See Matrix for what each type means.
enum class WeightType : std::uint8_t { kBf16, kQ8, kQ4 };

inline constexpr WeightType kWeightTypes[] = {WeightType::kBf16, WeightType::kQ8, WeightType::kQ4};

std::string_view name_of(WeightType type);  ///< "bf16", "q8" or "q4"

/// @throws Error naming the types there are, if the name is of none.
WeightType parse_weight_type(std::string_view name);

/// Columns that share a scale in a quantised matrix; its rows are whole groups.
inline constexpr int kGroupColumns = 32;

/// Columns whose groups share d and m in q4. The last block of a row may be shorter.
inline constexpr int kBlockColumns = 256;

/// Signed codes in [-127, 127] with one scale for each group: w = scale * code; 8.5 bits a weight.
struct Q8Codes {
  const std::int8_t* codes = nullptr;  ///< [rows, columns]
  const f16* scales = nullptr;         ///< [rows, groups]
};

/// Unsigned 4-bit codes, with a scale and a minimum for each group: w = d * scale * code - m * minimum; 4.625 bits a
/// weight where rows are whole blocks. In float32 both products are exact, so that only the difference is rounded.
struct Q4Codes {
  /// [rows, columns / 2]. Byte j of a group's 16 holds the code of its column j in the low half and of its column j +
  /// 16 in the high half.
  const std::uint8_t* codes = nullptr;
  const std::uint8_t* scales = nullptr;    ///< [rows, groups]
  const std::uint8_t* minimums = nullptr;  ///< [rows, groups]
  const f16* d = nullptr;                  ///< [rows, blocks]
  const f16* m = nullptr;                  ///< [rows, blocks]
};

/// A view of one weight matrix, row-major: y = W x with W of [rows, columns]. Everything that it points at is 256-byte
/// aligned, and columns of a quantised matrix are a multiple of kGroupColumns.
struct Matrix {
  WeightType type = WeightType::kBf16;
  int rows = 0;                ///< outputs
  int columns = 0;             ///< inputs
  const bf16* data = nullptr;  ///< [rows, columns], if the type is kBf16
  Q8Codes q8;                  ///< if it is kQ8
  Q4Codes q4;                  ///< if it is kQ4

  int groups() const { return columns / kGroupColumns; }                        ///< in a row
  int blocks() const { return (columns + kBlockColumns - 1) / kBlockColumns; }  ///< in a row

  /// Of a matrix in bf16.
  std::span<const bf16> row(int index) const {
    return {data + static_cast<std::size_t>(index) * static_cast<std::size_t>(columns),
            static_cast<std::size_t>(columns)};
  }
  std::uint64_t bytes() const;  ///< without padding

  /// Whether both are views of the same memory.
  bool is_same_as(const Matrix& other) const {
    return data == other.data && q8.codes == other.q8.codes && q4.codes == other.q4.codes;
  }
};

/// Types of a model's matrices.
struct WeightTypes {
  WeightType layers = WeightType::kBf16;  ///< of all matrices of the layers
  WeightType embed = WeightType::kBf16;   ///< of the embedding and of the head, tied or not

  friend bool operator==(WeightTypes, WeightTypes) = default;
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

  WeightTypes types() const { return {layers.front().qkv.type, embed.type}; }
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
  std::span<const std::byte> mapped;    ///< all of the mapping, if it is one of a file
};

}  // namespace gemma
