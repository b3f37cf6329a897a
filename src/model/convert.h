#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"

namespace gemma {

struct ConvertOptions {
  std::filesystem::path source;  ///< a Hugging Face directory, or a .gemma file in bf16
  std::filesystem::path output;  ///< the .gemma file; its stem becomes the model's name
  WeightTypes types;
  /// What the square of an error counts in each column, by matrix, for those that are quantised and listed; see
  /// quantise.
  std::map<std::string, std::vector<float>> importance;
  std::optional<bool> is_chat;  ///< instruction-tuned or not; not set: whether the source has a chat template
  /// Called now and then with the bytes written and the bytes in all; returns false to stop. May be empty.
  std::function<bool(std::uint64_t, std::uint64_t)> progress;
};

/// What was made.
struct Conversion {
  Config config;
  GenerationDefaults defaults;
  std::uint64_t bytes = 0;  ///< of the file
};

/// Makes a .gemma file. Reads and writes in blocks, one for each core: memory does not follow the model's
/// size.
/// @throws Error if the source is not a complete Gemma 2 model, a weight is not finite or out of its type's range,  the
/// file cannot be written, or
///         `progress` asked to stop. Nothing is left behind then, and a file that had the output's name is as before.
Conversion convert(const ConvertOptions& options);

}  // namespace gemma
