#include "cli/result_line.h"

#include <charconv>

#include "cli/result_output.h"

namespace gemma::cli {

std::string result_line(std::uint64_t index, const nlohmann::json& id, const Result& result,
                        const Tokenizer& tokenizer) {
  Json line = {{"index", index},
               {"id", id},
               {"text", result.text},
               {"tokens", result.tokens.size()},
               {"finish_reason", name_of(result.finish_reason)}};
  if (!result.logprobs.empty()) line["logprobs"] = to_json(result.logprobs, tokenizer);
  return to_line(line);
}

std::string error_line(std::uint64_t index, const nlohmann::json& id, const std::string& error) {
  return to_line({{"index", index}, {"id", id}, {"error", error}});
}

std::optional<std::uint64_t> index_of(std::string_view line) {
  constexpr std::string_view kStart = "{\"index\":";
  if (!line.starts_with(kStart)) return std::nullopt;
  std::uint64_t index = 0;
  const auto [end, error] = std::from_chars(line.data() + kStart.size(), line.data() + line.size(), index);
  if (error != std::errc() || end == line.data() + line.size() || *end != ',') return std::nullopt;
  return index;
}

// No text within a line can look like this: its quotes are escaped.
bool is_error_line(std::string_view line) { return line.find(",\"error\":\"") != std::string_view::npos; }

}  // namespace gemma::cli
