#include "cli/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "gemma/error.h"

namespace gemma::cli {
namespace {

using testing::IsEmpty;

constexpr int kContext = 100;
constexpr int kAnswerTokens = 10;

// A token for every character, and one for every message.
int count_characters(std::span<const Message> messages) {
  std::size_t tokens = 0;
  for (const Message& message : messages) tokens += 1 + message.content.size();
  return static_cast<int>(tokens);
}

std::optional<int> make_room(Conversation& conversation, const std::string& question) {
  return cli::make_room(conversation, question, kContext, kAnswerTokens, count_characters);
}

int needed(const Conversation& conversation, const std::string& question) {
  return count_characters(messages_of(conversation, question));
}

// Turns of 20 tokens each, whose questions begin with their number.
Conversation of_turns(int turns, const std::string& system = "") {
  Conversation conversation = {system, {}};
  for (int i = 0; i < turns; ++i) {
    conversation.turns.push_back({std::to_string(i) + std::string(8, 'q'), std::string(9, 'a'), {1, 2, 3}});
  }
  return conversation;
}

TEST(Conversation, IsReadWithTheSystemTextInFrontAndTheQuestionAtTheEnd) {
  const std::vector<Message> messages = messages_of({"Be brief.", {{"Hello!", "Hi!", {7, 8}}}}, "Who are you?");
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].role + ":" + messages[0].content, "system:Be brief.");
  EXPECT_EQ(messages[1].role + ":" + messages[1].content, "user:Hello!");
  EXPECT_EQ(messages[2].role + ":" + messages[2].content, "model:Hi!");
  EXPECT_EQ(messages[2].tokens, std::vector({7, 8}));
  EXPECT_EQ(messages[3].role + ":" + messages[3].content, "user:Who are you?");
}

TEST(Conversation, HasNoSystemMessageWithoutASystemText) { EXPECT_EQ(messages_of({"", {}}, "Hello!").size(), 1u); }

TEST(MakeRoom, LeavesAConversationThatFitsAsItIs) {
  Conversation conversation = of_turns(4);
  const std::string question(kContext - kAnswerTokens - 80 - 1, 'x');
  EXPECT_EQ(make_room(conversation, question), 0);
  EXPECT_EQ(conversation.turns.size(), 4u);
  EXPECT_EQ(conversation.turns.front().tokens.size(), 3u);
  EXPECT_EQ(conversation.dropped, 0);
}

TEST(MakeRoom, DropsTheOldestTurnsUntilHalfTheContextIsFree) {
  Conversation conversation = of_turns(5, "system");
  EXPECT_EQ(make_room(conversation, "x"), 3);
  ASSERT_EQ(conversation.turns.size(), 2u);
  EXPECT_EQ(conversation.turns.front().question.front(), '3');
  EXPECT_EQ(conversation.system, "system");
  EXPECT_EQ(conversation.dropped, 3);
  EXPECT_LE(needed(conversation, "x"), kContext / 2);
  EXPECT_EQ(make_room(conversation, "x"), 0) << "not at every turn";
}

TEST(MakeRoom, LetsTheRemainingAnswersBeReadAsText) {
  Conversation conversation = of_turns(5);
  ASSERT_GT(make_room(conversation, "x"), 0);
  for (const Turn& turn : conversation.turns) EXPECT_THAT(turn.tokens, IsEmpty());
}

TEST(MakeRoom, KeepsWhatItCanBeforeALongQuestion) {
  Conversation conversation = of_turns(4);
  const std::string question(60, 'x');
  EXPECT_EQ(make_room(conversation, question), 3);
  EXPECT_LE(needed(conversation, question) + kAnswerTokens, kContext);
}

TEST(MakeRoom, DropsEverythingForAQuestionThatLeavesLittleForItsAnswer) {
  Conversation conversation = of_turns(4);
  EXPECT_EQ(make_room(conversation, std::string(kContext - 2, 'x')), 4);
  EXPECT_THAT(conversation.turns, IsEmpty());
}

TEST(MakeRoom, RefusesAQuestionThatDoesNotFitAloneAndChangesNothing) {
  Conversation conversation = of_turns(4);
  EXPECT_EQ(make_room(conversation, std::string(kContext - 1, 'x')), std::nullopt);
  EXPECT_EQ(conversation.turns.size(), 4u);
  EXPECT_EQ(conversation.turns.front().tokens.size(), 3u);
  Conversation empty;
  EXPECT_EQ(make_room(empty, std::string(kContext - 1, 'x')), std::nullopt);
  EXPECT_EQ(make_room(empty, std::string(kContext - 2, 'x')), 0);
}

TEST(MakeRoom, CountsTheSystemText) {
  Conversation conversation = {std::string(kContext - 2, 's'), {}};
  EXPECT_EQ(make_room(conversation, "x"), std::nullopt);
}

TEST(SeedOfTurn, IsTheRunsOwnForTheFirstAnswer) { EXPECT_EQ(seed_of_turn(42, of_turns(0), 0), 42u); }

TEST(SeedOfTurn, IsAnotherForEveryTurnAndEveryRetry) {
  std::set<std::uint64_t> seeds;
  for (int turn = 0; turn < 30; ++turn) {
    for (int retry = 0; retry < 30; ++retry) seeds.insert(seed_of_turn(7, of_turns(turn), retry));
  }
  EXPECT_EQ(seeds.size(), 900u);
}

TEST(SeedOfTurn, DoesNotChangeWhenOlderTurnsAreDropped) {
  Conversation conversation = of_turns(5);
  const std::uint64_t before = seed_of_turn(7, conversation, 1);
  ASSERT_GT(make_room(conversation, "x"), 0);
  EXPECT_EQ(seed_of_turn(7, conversation, 1), before);
}

}  // namespace
}  // namespace gemma::cli
