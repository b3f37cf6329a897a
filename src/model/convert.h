#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "model/model.h"

namespace gemma {

struct ConvertOptions {
  std::filesystem::path source;  ///< a Hugging Face directory
  std::filesystem::path output;  ///< the .gemma file; its stem becomes the model's name
  WeightType type = WeightType::kBf16;
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

/// Converts a Hugging Face directory to a .gemma file. Reads and writes in blocks: memory does not follow the model's
/// size.
/// @throws Error if the source is not a complete Gemma 2 model, a weight is not finite, the file cannot be written, or
///         `progress` asked to stop. Nothing is left behind then, and a file that had the output's name is as before.
Conversion convert(const ConvertOptions& options);

}  // namespace gemma
