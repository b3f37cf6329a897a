#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "model/safetensors.h"

namespace gemma {

/// A tensor of a Hugging Face checkpoint: what it is and its bytes. The offset in `info` is not used.
struct HfTensorData {
  TensorInfo info;
  std::string bytes;
};

/// The files of a Hugging Face directory of a model, before they are written: a test spoils what it is about.
struct HfDirectory {
  /// Everything that is not a safetensors file, by file name.
  std::map<std::string, std::string> files;
  /// The safetensors files by name, each with its tensors by name.
  std::map<std::string, std::map<std::string, HfTensorData>> weights;

  HfTensorData& tensor(const std::string& name);

  /// Spreads the tensors over two shards, and adds the index.
  void split();

  void write(const std::filesystem::path& directory) const;

  /// Writes the model with a vocabulary of another size and an embedding of zeros that takes no room on the disk.
  void write_with_sparse_embedding(const std::filesystem::path& directory, int vocab_size) const;
};

/// The opposite of gemma-convert: one `model.safetensors` with all tensors in this type, config.json, and the model's
/// tokenizer.
HfDirectory hf_directory(const Model& model, DType type);

void write_safetensors(const std::filesystem::path& path, const std::map<std::string, HfTensorData>& tensors);

/// A model whose weights are multiples of 1/128 in [-1, 1): exact in bf16, f16 and f32.
Model exact_model(const Config& config, std::string_view tokenizer);

}  // namespace gemma
