#include "cli/batch_line.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "model/json_fields.h"
#include "model/quote.h"
#include "tokenizer/utf8.h"

namespace gemma::cli {
namespace {

using nlohmann::json;

// Real lines need 5: object, body, messages, message, parts of its content.
constexpr int kDeepestJson = 32;
// Each takes much more memory than the characters that it is written with.
constexpr int kMostJsonValues = 1 << 20;

constexpr std::array<std::string_view, 9> kOptions = {"max_tokens",     "temperature", "top_k", "top_p",     "min_p",
                                                      "repeat_penalty", "seed",        "stop",  "ignore_eos"};
constexpr std::array<std::string_view, 6> kOwnFields = {"id", "prompt", "messages", "logprobs", "chat", "raw"};
constexpr std::array<std::string_view, 5> kOpenAiFields = {"custom_id", "id", "method", "url", "body"};
constexpr std::array<std::string_view, 5> kOpenAiBody = {"prompt", "messages", "logprobs", "top_logprobs",
                                                         "max_completion_tokens"};
// These do not change an answer.
constexpr std::array<std::string_view, 3> kNotes = {"model", "user", "metadata"};
constexpr std::array<std::string_view, 7> kOpenAiNotes = {"store",
                                                          "service_tier",
                                                          "stream",
                                                          "stream_options",
                                                          "safety_identifier",
                                                          "prompt_cache_key",
                                                          "parallel_tool_calls"};

// What OpenAI's format can ask for and Gemma or this program does not have, with the values that ask for nothing.
bool asks_for_nothing(const std::string& name, const json& value) {
  static const std::vector<std::pair<std::string, json>> kNeutral = {
      {"n", 1},
      {"best_of", 1},
      {"echo", false},
      {"suffix", ""},
      {"presence_penalty", 0},
      {"frequency_penalty", 0},
      {"repetition_penalty", 1},
      {"logit_bias", json::object()},
      {"response_format", {{"type", "text"}}},
      {"modalities", json::array({"text"})},
      {"tools", json::array()},
      {"functions", json::array()},
      {"tool_choice", "none"},
      {"tool_choice", "auto"},
  };
  return std::any_of(kNeutral.begin(), kNeutral.end(),
                     [&](const auto& neutral) { return neutral.first == name && neutral.second == value; });
}

std::string shown(std::string_view name) {
  constexpr std::size_t kLongest = 40;
  return in_quotes(name.size() <= kLongest ? std::string(name) : std::string(name.substr(0, kLongest)) + "...");
}

template <std::size_t kSize>
bool is_one_of(const std::array<std::string_view, kSize>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Refuses what nlohmann/json would accept: members that are there twice (the last would win without a word), and
// nesting and numbers of values without bounds.
class StrictStructure {
 public:
  bool operator()(int depth, json::parse_event_t event, const json& value) {
    using Event = json::parse_event_t;
    if (++values_ > kMostJsonValues) throw Error("the line has too many values");
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kDeepestJson) throw Error("the line is nested too deeply");
    }
    if (event == Event::object_start) names_.emplace_back();
    if (event == Event::object_end) names_.pop_back();
    if (event == Event::key) {
      const auto& name = value.get_ref<const std::string&>();
      if (!names_.back().insert(name).second) throw Error("the line has " + shown(name) + " twice");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> names_;  // of the objects that are open
  int values_ = 0;
};

json parse_object(std::string_view text) {
  StrictStructure structure;
  try {
    json object = json::parse(text.begin(), text.end(), std::ref(structure));
    if (!object.is_object()) throw Error("the line is not a JSON object such as {\"prompt\": \"...\"}");
    return object;
  } catch (const json::parse_error& error) {
    throw Error("the line is not valid JSON: look at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    throw Error("the line has a number that is too large");
  }
}

int read_logprobs(const JsonFields& fields, const char* name) {
  const int count = fields.optional_integer(name).value_or(0);
  if (count > kMaxLogprobs) {
    fields.fail("asks for more than " + std::to_string(kMaxLogprobs) + " '" + std::string(name) + "'");
  }
  return count;
}

std::optional<float> optional_float(const JsonFields& fields, const char* name) {
  const std::optional<double> value = fields.optional_number(name);
  if (!value) return std::nullopt;
  if (std::abs(*value) > std::numeric_limits<float>::max()) {
    fields.fail("has a '" + std::string(name) + "' that is out of range");
  }
  return static_cast<float>(*value);
}

std::vector<std::string> read_stop(const JsonFields& fields) {
  const json& value = fields.member("stop");
  const json list = value.is_string() ? json::array({value}) : value;
  const auto is_text = [](const json& text) { return text.is_string(); };
  if (!list.is_array() || !std::all_of(list.begin(), list.end(), is_text)) {
    fields.fail("has a 'stop' that is neither a text nor a list of texts");
  }
  return list.get<std::vector<std::string>>();
}

void read_options(const JsonFields& fields, GenerationOptions& options) {
  if (const auto value = fields.optional_integer("max_tokens")) options.max_tokens = *value;
  if (const auto value = optional_float(fields, "temperature")) options.temperature = value;
  if (const auto value = fields.optional_integer("top_k")) options.top_k = value;
  if (const auto value = optional_float(fields, "top_p")) options.top_p = value;
  if (const auto value = optional_float(fields, "min_p")) options.min_p = *value;
  if (const auto value = optional_float(fields, "repeat_penalty")) options.repeat_penalty = *value;
  if (fields.has("seed")) {
    const json& seed = fields.member("seed");
    if (!seed.is_number_unsigned()) fields.fail("has a 'seed' that is not a whole number from 0 to 2^64-1");
    options.seed = seed.get<std::uint64_t>();
  }
  if (fields.has("stop")) options.stop = read_stop(fields);
  if (const auto value = fields.optional_boolean("ignore_eos")) options.ignore_eos = *value;
}

/// A text, or OpenAI's list of parts that are texts, which are joined by line breaks.
std::string read_content(const JsonFields& message) {
  const json& content = message.member("content");
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) message.fail("has a 'content' that is neither a text nor a list of texts");
  std::string text;
  for (const json& part : content) {
    if (!part.is_object()) message.fail("has a part that is not an object");
    const JsonFields fields(part, "a message's part");
    if (fields.text("type") != "text") message.fail("has a part that is not text, which is all that Gemma 2 reads");
    if (!text.empty()) text += '\n';
    text += fields.text("text");
  }
  return text;
}

std::vector<Message> read_messages(const JsonFields& fields) {
  const json& list = fields.member("messages");
  if (!list.is_array() || list.empty()) fields.fail("has 'messages' that are not a list of messages");
  std::vector<Message> messages;
  for (const json& entry : list) {
    if (!entry.is_object()) fields.fail("has a message that is not an object");
    const JsonFields message(entry, "a message");
    for (const auto& [name, value] : entry.items()) {
      if (name == "role" || name == "content" || name == "name" || value.is_null()) continue;
      message.fail("has " + shown(name) + ", which Gemma 2 does not understand");
    }
    const std::string role = message.text("role");
    // The newer name that OpenAI gives to the same thing.
    messages.push_back({.role = role == "developer" ? "system" : role, .content = read_content(message)});
  }
  return messages;
}

void read_prompt(const JsonFields& fields, Request& request) {
  if (fields.has("prompt") == fields.has("messages")) fields.fail("needs either 'prompt' or 'messages'");
  if (fields.has("messages")) {
    request.messages = read_messages(fields);
    return;
  }
  const json& prompt = fields.member("prompt");
  if (prompt.is_string()) {
    request.prompt = prompt.get<std::string>();
    return;
  }
  if (!prompt.is_array() || prompt.empty())
    fields.fail("has a 'prompt' that is neither a text nor a list of token ids");
  for (const json& id : prompt) {
    const std::optional<int> number = to_int(id);
    if (!number) fields.fail("has a 'prompt' that is a list, but not one of token ids; put one prompt on a line");
    request.tokens.push_back(*number);
  }
}

void read_own_line(const json& object, Request& request) {
  const JsonFields fields(object, "the line");
  for (const auto& [name, value] : object.items()) {
    if (is_one_of(kOwnFields, name) || is_one_of(kOptions, name) || is_one_of(kNotes, name)) continue;
    fields.fail("has an unknown option " + shown(name));
  }
  read_options(fields, request.options);
  if (fields.has("logprobs")) request.options.logprobs = read_logprobs(fields, "logprobs");
  const std::optional<bool> chat = fields.optional_boolean("chat");
  const std::optional<bool> raw = fields.optional_boolean("raw");
  if (chat && raw) fields.fail("has both 'chat' and 'raw'; one of them is enough");
  if (chat || raw) request.options.chat = chat ? *chat : !*raw;
  read_prompt(fields, request);
  if (!request.messages.empty() && (chat || raw) && !*request.options.chat) {
    fields.fail("has 'messages', which are always a chat");
  }
}

void read_openai_logprobs(const JsonFields& body, bool is_chat, GenerationOptions& options) {
  if (!is_chat) {
    if (body.has("top_logprobs")) body.fail("has 'top_logprobs', which belong to 'messages'");
    if (body.has("logprobs")) options.logprobs = std::max(read_logprobs(body, "logprobs"), 1);
    return;
  }
  const std::optional<bool> is_wanted = body.optional_boolean("logprobs");
  const int count = read_logprobs(body, "top_logprobs");
  if (count > 0 && !is_wanted.value_or(false)) body.fail("has 'top_logprobs' without 'logprobs': true");
  if (is_wanted) options.logprobs = *is_wanted ? std::max(count, 1) : 0;
}

void read_openai_line(const json& object, Request& request) {
  const JsonFields line(object, "the line");
  for (const auto& [name, value] : object.items()) {
    if (!is_one_of(kOpenAiFields, name)) line.fail("has an unknown member " + shown(name) + " beside 'body'");
  }
  if (line.optional_text("method").value_or("POST") != "POST") line.fail("has a 'method' that is not POST");
  if (!line.member("body").is_object()) line.fail("has a 'body' that is not an object");
  const json& members = line.member("body");
  const JsonFields body(members, "the body");
  for (const auto& [name, value] : members.items()) {
    if (is_one_of(kOpenAiBody, name) || is_one_of(kOptions, name) || is_one_of(kNotes, name)) continue;
    if (is_one_of(kOpenAiNotes, name) || value.is_null() || asks_for_nothing(name, value)) continue;
    body.fail("asks for " + shown(name) + ", which is not understood here");
  }

  read_prompt(body, request);
  const bool is_chat = !request.messages.empty();
  const char* const url = is_chat ? "/v1/chat/completions" : "/v1/completions";
  if (line.optional_text("url").value_or(url) != url) {
    line.fail(std::string("has another 'url' than ") + url + ", which is what its body is for");
  }
  if (!is_chat) request.options.chat = false;
  read_options(body, request.options);
  if (const auto newer = body.optional_integer("max_completion_tokens")) {
    if (body.optional_integer("max_tokens").value_or(*newer) != *newer) {
      body.fail("has 'max_tokens' and 'max_completion_tokens' that differ");
    }
    request.options.max_tokens = *newer;
  }
  read_openai_logprobs(body, is_chat, request.options);
}

json read_id(const json& object) {
  for (const char* name : {"id", "custom_id"}) {
    const auto found = object.find(name);
    if (found == object.end() || found->is_null()) continue;
    if (!found->is_string() && !found->is_number()) {
      throw Error("the line has an '" + std::string(name) + "' that is neither a text nor a number");
    }
    // What is kept as a float does not come back as it was written.
    if (found->is_number_float()) {
      throw Error("the line has an '" + std::string(name) +
                  "' that is a fraction, or too large for a whole number; write it as a text, in quotes");
    }
    return *found;
  }
  return nullptr;
}

// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): a bijection
// in which each bit depends on all.
std::uint64_t mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

std::string utf8_problem(std::string_view text) {
  const std::size_t offset = find_invalid_utf8(text);
  if (offset == std::string_view::npos) return {};
  return "the line is not valid UTF-8: bad byte at offset " + std::to_string(offset);
}

}  // namespace

BatchLine parse_text_line(std::string_view text, const GenerationOptions& defaults) {
  BatchLine line{.request = {.prompt = std::string(text), .options = defaults}, .error = utf8_problem(text)};
  return line;
}

BatchLine parse_json_line(std::string_view text, const GenerationOptions& defaults) {
  BatchLine line{.request = {.prompt = {}, .options = defaults}, .error = utf8_problem(text)};
  if (!line.error.empty()) return line;
  try {
    const json object = parse_object(text);
    line.id = read_id(object);
    if (object.contains("body")) {
      read_openai_line(object, line.request);
    } else {
      read_own_line(object, line.request);
    }
  } catch (const Error& error) {
    line.error = error.what();
  }
  return line;
}

std::uint64_t line_seed(std::uint64_t run_seed, std::uint64_t index) { return mix(mix(run_seed) + index); }

}  // namespace gemma::cli
