#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gemma/message.h"
#include "gemma/tokenizer.h"

namespace gemma::cli {

/// A message of the user and its answer.
struct Turn {
  std::string question;
  std::string answer;
  std::vector<int> tokens = {};  ///< the answer's ids as the model made them; empty: it is read as text
};

/// What has been said.
struct Conversation {
  std::string system;  ///< stands before the first message; may be empty
  std::vector<Turn> turns;
  int dropped = 0;  ///< turns that were once in front of these
};

/// The conversation as an engine reads it, with a question to be answered.
std::vector<Message> messages_of(const Conversation& conversation, const std::string& question);

/// Whether ids are those of a text, so that they may stand for it.
bool spells(const Tokenizer& tokenizer, std::span<const int> tokens, const std::string& text);

/// How many ids messages take.
using TokenCounter = std::function<int(std::span<const Message> messages)>;

/// Drops the oldest turns if the question and an answer of `answer_tokens` do not fit into the context: so many that
/// what remains takes half of it, or else at least fits, so that this does not happen at every turn. The answers that
/// remain are then read as text: nothing of the cache can be used again, and reading is faster than making.
/// @return how many turns were dropped; nullopt if the question does not even fit alone. Nothing is changed then.
std::optional<int> make_room(Conversation& conversation, const std::string& question, int context, int answer_tokens,
                             const TokenCounter& count);

/// The seed of an answer: another one for every turn and every time that it is tried again, and the run's own for the
/// first, so that it is the answer that `prompt --chat` gives.
std::uint64_t seed_of_turn(std::uint64_t seed, const Conversation& conversation, int retries);

}  // namespace gemma::cli
