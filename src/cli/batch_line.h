#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "gemma/engine.h"

namespace gemma::cli {

/// What a line of a batch asks for.
struct BatchLine {
  nlohmann::json id;  ///< a string or a number; null if the line has none
  Request request;
  std::string error;  ///< why it cannot be done; empty if it can
};

/// The prompt is the line.
BatchLine parse_text_line(std::string_view text, const GenerationOptions& defaults);

/// A JSON object: `prompt` or `messages`, `id` and generation options by the names of the command line; or a line of
/// OpenAI's batch format (`custom_id`, `method`, `url`, `body`). What would change the answer and is not understood is
/// an error, never passed over.
/// @param defaults  hold where the line says nothing
BatchLine parse_json_line(std::string_view text, const GenerationOptions& defaults);

/// The seed of a line that has none of its own. Depends on nothing but the run's seed and the index, and no two lines
/// of a run share one.
std::uint64_t line_seed(std::uint64_t run_seed, std::uint64_t index);

}  // namespace gemma::cli
