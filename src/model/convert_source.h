#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/hf_checkpoint.h"
#include "model/model.h"

namespace gemma {

/// A tensor that a model is converted from, and the rows that it adds to a weight.
struct SourcePart {
  std::string tensor;
  int rows = 0;
};

/// What a model is converted from: a Hugging Face directory, or a .gemma file in bf16.
struct ConvertSource {
  Config config;
  GenerationDefaults defaults;
  std::string tokenizer;                     ///< a serialised SentencePiece model
  std::map<std::string, HfTensor> tensors;   ///< by name
  std::vector<std::filesystem::path> files;  ///< everything that is read
  bool is_model_file = false;

  /// Opens it and checks everything but the tensors.
  /// @throws Error if it is not there, is something else, is quantised already, or is damaged.
  static ConvertSource open(const std::filesystem::path& path);

  /// Where a weight of the .gemma file comes from: tensors, one below the other.
  std::vector<SourcePart> parts_of(const std::string& weight, int rows) const;
};

}  // namespace gemma
