#include "cli/conversation_file.h"

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "cli/json_output.h"
#include "cli/text_input.h"
#include "gemma/error.h"
#include "model/atomic_file.h"
#include "model/json_fields.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr const char* kFormat = "gemma-run chat 1";
constexpr std::uintmax_t kLargestBytes = 4 << 20;

void add_message(Json& messages, const char* role, const std::string& content, const std::vector<int>& tokens) {
  Json message = {{"role", role}, {"content", content}};
  if (!tokens.empty()) message["tokens"] = tokens;
  messages.push_back(std::move(message));
}

std::vector<int> read_tokens(const nlohmann::json& list, const JsonFields& fields) {
  if (!list.is_array()) fields.fail("tokens is not a list of ids");
  std::vector<int> tokens;
  for (const nlohmann::json& entry : list) {
    const std::optional<int> id = to_int(entry);
    if (!id || *id < 0) fields.fail("tokens has something that is not an id");
    tokens.push_back(*id);
  }
  return tokens;
}

Turn read_turn(const nlohmann::json& question, const nlohmann::json& answer, const Tokenizer& tokenizer,
               const std::string& where) {
  if (!question.is_object() || !answer.is_object()) throw Error(where + " is not a list of messages");
  const JsonFields user(question, where);
  const JsonFields model(answer, where);
  const std::string role = model.text("role");
  if (user.text("role") != "user" || (role != "model" && role != "assistant")) {
    throw Error(where + " do not alternate between user and model, beginning with user");
  }
  Turn turn = {user.text("content"), model.text("content")};
  if (model.has("tokens")) turn.tokens = read_tokens(model.member("tokens"), model);
  if (!spells(tokenizer, turn.tokens, turn.answer)) turn.tokens.clear();
  return turn;
}

}  // namespace

void save_conversation(const Conversation& conversation, const std::string& model, const std::string& path) {
  Json messages = Json::array();
  for (const Turn& turn : conversation.turns) {
    add_message(messages, "user", turn.question, {});
    add_message(messages, "model", turn.answer, turn.tokens);
  }
  const Json document = {{"format", kFormat},
                         {"model", model},
                         {"system", conversation.system},
                         {"dropped", conversation.dropped},
                         {"messages", std::move(messages)}};
  const std::string text = document.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  AtomicFile file(path);
  file.write(0, std::as_bytes(std::span(text)));
  file.commit();
}

Conversation load_conversation(const std::string& path, const Tokenizer& tokenizer) {
  const std::string name = in_quotes(path);
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_directory(status)) {
    // Anything else might never end.
    if (!std::filesystem::is_regular_file(status)) throw Error("cannot read " + name + ": it is not a regular file");
    if (std::filesystem::file_size(path, error) > kLargestBytes && !error) {
      throw Error("cannot read " + name + ": it is larger than any conversation (4 MiB)");
    }
  }
  const nlohmann::json document = parse_json_object(read_file(path == "-" ? "./-" : path, kMostPromptBytes), name);
  const JsonFields fields(document, name);
  if (fields.optional_text("format") != kFormat) {
    fields.fail(std::string("is not a saved conversation: its \"format\" is not \"") + kFormat + "\"");
  }
  const nlohmann::json& messages = fields.member("messages");
  if (!messages.is_array() || messages.size() % 2 != 0) {
    fields.fail("\"messages\" is not a list of messages that ends with an answer");
  }
  Conversation conversation;
  conversation.system = fields.optional_text("system").value_or("");
  conversation.dropped = fields.optional_integer("dropped").value_or(0);
  // Far more than anybody says, and far from where counting on would overflow.
  if (conversation.dropped < 0 || conversation.dropped > std::numeric_limits<int>::max() / 2) {
    fields.fail("\"dropped\" is out of range");
  }
  for (std::size_t i = 0; i < messages.size(); i += 2) {
    const std::string where = name + ": messages " + std::to_string(i) + " and " + std::to_string(i + 1);
    conversation.turns.push_back(read_turn(messages[i], messages[i + 1], tokenizer, where));
  }
  return conversation;
}

}  // namespace gemma::cli
