#include "tokenizer/chat_template.h"

#include <string_view>

#include "gemma/error.h"
#include "tokenizer/utf8.h"

namespace gemma {
namespace {

std::string_view turn_of(const std::string& role) {
  if (role == "user") return "user";
  if (role == "model" || role == "assistant") return "model";
  if (role == "system") throw Error("a system message can only stand in front of the conversation");
  throw Error("unknown role '" + role + "' in a conversation: it is system, user or model");
}

}  // namespace

ChatPrompt chat_prompt(const Tokenizer& tokenizer, std::span<const Message> messages, ControlTokens control) {
  if (tokenizer.start_of_turn() < 0 || tokenizer.end_of_turn() < 0) {
    throw Error("this model cannot chat: its tokenizer has no <start_of_turn> and <end_of_turn>");
  }
  ChatPrompt prompt{.ids = {tokenizer.bos()}, .answers = {}};
  std::vector<int>& ids = prompt.ids;
  const auto append = [&](std::string_view text) {
    const std::vector<int> encoded = tokenizer.encode(text, control);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  };

  for (const Message& message : messages) require_utf8(message.content);
  std::string system;
  if (!messages.empty() && messages.front().role == "system") {
    system = trim(messages.front().content);
    if (!system.empty()) system += "\n\n";
    messages = messages.subspan(1);
  }
  if (messages.size() % 2 == 0) throw Error("a conversation must begin and end with a message of the user");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string_view turn = turn_of(messages[i].role);
    if (turn != (i % 2 == 0 ? "user" : "model")) {
      throw Error("the messages of a conversation must alternate between user and model, beginning with user");
    }
    ids.push_back(tokenizer.start_of_turn());
    std::string text = std::string(turn) + "\n";
    if (messages[i].tokens.empty()) {
      if (i == 0) text += system;
      text += trim(messages[i].content);
      append(text);
    } else {
      if (turn != "model") throw Error("only a message of the model can be given as ids");
      append(text);
      const int first = static_cast<int>(ids.size());
      ids.insert(ids.end(), messages[i].tokens.begin(), messages[i].tokens.end());
      prompt.answers.push_back({first, static_cast<int>(ids.size())});
    }
    ids.push_back(tokenizer.end_of_turn());
    append("\n");
  }
  ids.push_back(tokenizer.start_of_turn());
  append("model\n");
  return prompt;
}

}  // namespace gemma
