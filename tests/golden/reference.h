#pragma once

#include <filesystem>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/model.h"

/// What Hugging Face transformers computed for the demo model: the files of this folder.
namespace gemma {

/// Where a file of this folder is.
std::filesystem::path reference_path(const std::string& name);

/// The contents of a file of this folder.
std::string reference_file(const std::string& name);

/// reference.json
const nlohmann::json& reference();

/// A tensor of reference.safetensors, flat.
template <typename T>
std::vector<T> reference_tensor(const std::string& name);

/// One of the prompts of reference.json.
struct ReferencePrompt {
  int number = 0;
  std::string name;
  std::vector<int> tokens;
  std::vector<int> greedy;      ///< the 64 tokens that follow
  std::vector<double> margins;  ///< by how much the logit of each of them was the largest

  const nlohmann::json& expected() const;
};

const std::vector<ReferencePrompt>& reference_prompts();

void PrintTo(const ReferencePrompt& prompt, std::ostream* out);

/// The model that all of this is about: the demo model in bf16, of which the built-in one is a conversion to q8.
const Model& demo_model_bf16();

}  // namespace gemma
