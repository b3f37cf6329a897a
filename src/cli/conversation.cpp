#include "cli/conversation.h"

#include <algorithm>

namespace gemma::cli {
namespace {

Conversation without_oldest(const Conversation& conversation, std::size_t turns) {
  Conversation rest = {conversation.system,
                       {conversation.turns.begin() + static_cast<std::ptrdiff_t>(turns), conversation.turns.end()},
                       conversation.dropped + static_cast<int>(turns)};
  for (Turn& turn : rest.turns) turn.tokens.clear();
  return rest;
}

}  // namespace

std::vector<Message> messages_of(const Conversation& conversation, const std::string& question) {
  std::vector<Message> messages;
  if (!conversation.system.empty()) messages.push_back({"system", conversation.system});
  for (const Turn& turn : conversation.turns) {
    messages.push_back({"user", turn.question});
    messages.push_back({"model", turn.answer, turn.tokens});
  }
  messages.push_back({"user", question});
  return messages;
}

bool spells(const Tokenizer& tokenizer, std::span<const int> tokens, const std::string& text) {
  const auto is_piece = [&tokenizer](int id) { return 0 <= id && id < tokenizer.size(); };
  return std::all_of(tokens.begin(), tokens.end(), is_piece) && tokenizer.decode(tokens) == text;
}

std::optional<int> make_room(Conversation& conversation, const std::string& question, int context, int answer_tokens,
                             const TokenCounter& count) {
  const auto needed = [&](const Conversation& candidate) { return count(messages_of(candidate, question)); };
  if (needed(conversation) + answer_tokens <= context) return 0;

  const std::size_t all = conversation.turns.size();
  std::optional<std::size_t> fitting;
  for (std::size_t turns = 1; turns <= all; ++turns) {
    const int tokens = needed(without_oldest(conversation, turns));
    if (!fitting && tokens + answer_tokens <= context) fitting = turns;
    if (tokens <= context / 2) {
      fitting = turns;
      break;
    }
  }
  if (!fitting) {
    if (needed(without_oldest(conversation, all)) >= context) return std::nullopt;
    fitting = all;
  }
  if (*fitting > 0) conversation = without_oldest(conversation, *fitting);
  return static_cast<int>(*fitting);
}

std::uint64_t seed_of_turn(std::uint64_t seed, const Conversation& conversation, int retries) {
  // Odd constants: no two small numbers of turns and retries give the same seed.
  constexpr std::uint64_t kTurnStep = 0x9E3779B97F4A7C15;
  constexpr std::uint64_t kRetryStep = 0xD1B54A32D192ED03;
  const std::uint64_t turn = conversation.turns.size() + static_cast<std::uint64_t>(conversation.dropped);
  return seed + turn * kTurnStep + static_cast<std::uint64_t>(retries) * kRetryStep;
}

}  // namespace gemma::cli
