#pragma once

#include <span>
#include <vector>

#include "gemma/message.h"
#include "gemma/tokenizer.h"

namespace gemma {

/// The ids of a conversation.
struct ChatPrompt {
  /// Places [first, last) in `ids`.
  struct Range {
    int first = 0, last = 0;
  };

  std::vector<int> ids;
  std::vector<Range> answers;  ///< the messages that were given as ids (Message::tokens), ascending
};

/// A conversation as Gemma was trained to read it: `<bos>`, a turn `<start_of_turn>ROLE\nTEXT<end_of_turn>\n` for each
/// message, TEXT without the white space around it, and `<start_of_turn>model\n`, which asks for the answer. Gemma has
/// no turn for system messages: one in front of the conversation goes before the first user text, an empty line
/// between.
///
/// @param control  whether control tokens named in the texts count; as text, they cannot forge a turn.
/// @throws Error if roles do not alternate user, model, ..., user (after at most one system message), or a role is none
///         of these, or a text is not valid UTF-8, or one that is not an answer is given as ids, or the tokenizer has
///         no turns.
ChatPrompt chat_prompt(const Tokenizer& tokenizer, std::span<const Message> messages,
                       ControlTokens control = ControlTokens::kAsText);

}  // namespace gemma
