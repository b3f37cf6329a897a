#include "cli/batch_identity.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/version.h"
#include "model/hash.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr int kFormatVersion = 1;

// Members that are not options, and how a difference in them is told.
constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kInWords = {{
    {"format", "gemma-run has another version"},
    {"version", "gemma-run has another version"},
    {"model", "the model is another one"},
    {"input", "INPUT has changed"},
    {"input_bytes", "INPUT has changed"},
    {"input_hash", "INPUT has changed"},
    {"prompts", "INPUT has changed"},
}};

/// With the digits that were typed: 0.7, not 0.699999988079071.
Json shortest(float value) {
  std::array<char, 32> text{};
  const char* const end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  double same = value;
  std::from_chars(text.data(), end, same);
  return same;
}

template <typename T>
Json or_null(const std::optional<T>& value) {
  if (!value) return nullptr;
  if constexpr (std::is_same_v<T, float>) {
    return shortest(*value);
  } else {
    return *value;
  }
}

/// What the bits of a result depend on: the instructions or the GPU, not the number of threads.
std::string hardware(const std::string& device) {
  return device.starts_with("CPU") ? device.substr(0, device.rfind(", ")) : device;
}

const char* cache_type(const BatchIdentity& identity) {
  switch (identity.engine_options.cache) {
    case CacheType::kF32:
      return "f32";
    case CacheType::kBf16:
      return "bf16";
    case CacheType::kQ8:
      return "q8";
    case CacheType::kAuto:
      break;
  }
  return identity.engine.device.starts_with("CPU") ? "f32" : "bf16";
}

std::string shown(const Json& value) { return value.is_null() ? "not given" : printable(to_line(value)); }

std::string difference(const std::string& name, const Json& then, const Json& now) {
  for (const auto& [member, words] : kInWords) {
    if (member == name) return std::string(words);
  }
  std::string option = "--" + name;
  for (char& letter : option) letter = letter == '_' ? '-' : letter;
  return option + " was " + shown(then) + " and is " + shown(now);
}

}  // namespace

Json to_json(const BatchIdentity& identity) {
  const GenerationOptions& options = identity.options;
  const Json document = {
      {"format", kFormatVersion},
      {"version", program_version()},
      {"model", identity.engine.model_id},
      {"device", hardware(identity.engine.device)},
      {"input", identity.format == InputFormat::kText ? "txt" : "jsonl"},
      {"input_bytes", identity.input.bytes},
      {"input_hash", identity.input.hash},
      {"prompts", identity.input.prompts},
      {"shard", to_text(identity.shard)},
      {"context", identity.engine.context},
      {"window", identity.engine.window},
      {"kv_type", cache_type(identity)},
      {"max_tokens", options.max_tokens},
      {"temperature", or_null(options.temperature)},
      {"top_k", or_null(options.top_k)},
      {"top_p", or_null(options.top_p)},
      {"min_p", shortest(options.min_p)},
      {"repeat_penalty", shortest(options.repeat_penalty)},
      {"stop", options.stop},
      {"ignore_eos", options.ignore_eos},
      {"logprobs", options.logprobs},
      {"chat", options.chat.value_or(identity.engine.is_chat)},
      {"parse_special", options.parse_special},
      {"seed", or_null(options.seed)},
  };
  return Json::parse(to_line(document));  // exactly as it comes back from a file
}

std::string differences(const Json& then, const Json& now, std::initializer_list<std::string_view> except) {
  std::vector<std::string> found;
  const auto compare = [&](const std::string& name, const Json& old_value, const Json& new_value) {
    const bool counts = std::find(except.begin(), except.end(), name) == except.end();
    if (!counts || old_value == new_value || (name == "seed" && new_value.is_null())) return;
    std::string text = difference(name, old_value, new_value);
    if (found.empty() || found.back() != text) found.push_back(std::move(text));
  };
  for (const auto& [name, value] : now.items()) compare(name, then.value(name, Json()), value);
  for (const auto& [name, value] : then.items()) {
    if (!now.contains(name)) compare(name, value, Json());
  }
  std::string text;
  for (const std::string& one : found) text += (text.empty() ? "" : ", ") + one;
  return text;
}

std::uint64_t shared_seed(Json identity) {
  identity.erase("shard");
  identity.erase("seed");
  const std::string text = to_line(identity);
  // 32 bits, as other drawn seeds have, so that it is easy to type again.
  return hash64(std::as_bytes(std::span(text))) >> 32;
}

}  // namespace gemma::cli
