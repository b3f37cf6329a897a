#pragma once

#include <span>
#include <string>
#include <vector>

#include "gemma/tokenizer.h"

namespace gemma {

struct ChatMessage {
  std::string role;  ///< "system", "user", or "model" (also known as "assistant")
  std::string content;
};

/// A conversation as Gemma was trained to read it: `<bos>`, a turn `<start_of_turn>ROLE\nTEXT<end_of_turn>\n` for each
/// message, TEXT without the white space around it, and `<start_of_turn>model\n`, which asks for the answer. Gemma has
/// no turn for system messages: one in front of the conversation goes before the first user text, an empty line
/// between.
///
/// @param control  whether control tokens named in the texts count; as text, they cannot forge a turn.
/// @throws Error if roles do not alternate user, model, ..., user (after at most one system message), or a role is none
/// of
///         these, or a text is not valid UTF-8, or the tokenizer has no turns.
std::vector<int> chat_prompt(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                             ControlTokens control = ControlTokens::kAsText);

}  // namespace gemma
