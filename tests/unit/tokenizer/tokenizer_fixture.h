#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "gemma/tokenizer.h"

namespace gemma {

inline std::string read_golden(const std::string& name) {
  const std::string path = std::string(GEMMA_SOURCE_DIR) + "/tests/golden/" + name;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The demo model's tokenizer: 4096 pieces, made like Gemma's.
inline const std::string& tokenizer_model() {
  static const std::string model = read_golden("tokenizer.model");
  return model;
}

inline const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer{tokenizer_model()};
  return tokenizer;
}

/// What Hugging Face transformers says about the demo model.
inline const nlohmann::json& reference() {
  static const nlohmann::json json = nlohmann::json::parse(read_golden("reference.json"));
  return json;
}

}  // namespace gemma
