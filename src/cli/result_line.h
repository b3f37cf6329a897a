#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "gemma/engine.h"

namespace gemma::cli {

/// A line of a batch's output without its line break: {"index", "id", "text", "tokens", "finish_reason"}, and
/// "logprobs" if there are any.
std::string result_line(std::uint64_t index, const nlohmann::json& id, const Result& result,
                        const Tokenizer& tokenizer);

/// The same for a prompt that could not be answered: {"index", "id", "error"}.
std::string error_line(std::uint64_t index, const nlohmann::json& id, const std::string& error);

/// The index of a line that one of these has made; nullopt if it is something else.
std::optional<std::uint64_t> index_of(std::string_view line);

/// Whether a line that one of these has made says why there is no answer.
bool is_error_line(std::string_view line);

}  // namespace gemma::cli
