#include "cli/conversation_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "gemma/engine.h"
#include "support/error_text.h"
#include "support/temporary_directory.h"

namespace gemma::cli {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class ConversationFile : public testing::Test {
 protected:
  static const Tokenizer& tokenizer() {
    static const Engine engine{EngineOptions{}};
    return engine.tokenizer();
  }

  std::string path() const { return folder_ / "chat.json"; }

  void write(const std::string& text) const { std::ofstream(path(), std::ios::binary) << text; }

  std::string read() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  Conversation load(const std::string& text) const {
    write(text);
    return load_conversation(path(), tokenizer());
  }

  // What is wrong with a document that has `members` behind a good format.
  std::string refusal(const std::string& members) const {
    return error_text([&] { load("{\"format\": \"gemma-run chat 1\", " + members + "}"); });
  }

  TemporaryDirectory folder_;
};

TEST_F(ConversationFile, GivesBackWhatWasSaved) {
  const std::string answer = "Es war einmal \"ein\" Hund.\n\xF0\x9F\x90\xB6";
  const Conversation saved = {
      "Be brief.", {{"Hello!\n\xC3\xA4", answer, tokenizer().encode(answer)}, {"And?", "No ids.", {}}}, 3};
  save_conversation(saved, "some model", path());
  const Conversation loaded = load_conversation(path(), tokenizer());
  EXPECT_EQ(loaded.system, saved.system);
  EXPECT_EQ(loaded.dropped, 3);
  ASSERT_EQ(loaded.turns.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(loaded.turns[i].question, saved.turns[i].question);
    EXPECT_EQ(loaded.turns[i].answer, saved.turns[i].answer);
    EXPECT_EQ(loaded.turns[i].tokens, saved.turns[i].tokens);
  }
}

TEST_F(ConversationFile, IsTheDocumentedJson) {
  save_conversation({"", {{"Hello!", "Hi!", {5, 6}}}}, "m", path());
  EXPECT_EQ(read(),
            "{\"format\":\"gemma-run chat 1\",\"model\":\"m\",\"system\":\"\",\"dropped\":0,\"messages\":["
            "{\"role\":\"user\",\"content\":\"Hello!\"},{\"role\":\"model\",\"content\":\"Hi!\",\"tokens\":[5,6]}]}\n");
}

TEST_F(ConversationFile, MayBeWrittenByHand) {
  const Conversation loaded = load(R"({"format": "gemma-run chat 1", "messages": [
      {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi!"}]})");
  ASSERT_EQ(loaded.turns.size(), 1u);
  EXPECT_EQ(loaded.turns[0].answer, "Hi!");
  EXPECT_THAT(loaded.system, IsEmpty());
}

TEST_F(ConversationFile, KeepsIdsOnlyIfTheySpellTheAnswer) {
  const std::vector<int> ids = tokenizer().encode("Once upon a time");
  const auto tokens_of = [&](const std::vector<int>& tokens) {
    save_conversation({"", {{"Hello!", "Once upon a time", tokens}}}, "m", path());
    return load_conversation(path(), tokenizer()).turns.at(0).tokens;
  };
  EXPECT_EQ(tokens_of(ids), ids);
  EXPECT_THAT(tokens_of({ids[0], ids[1]}), IsEmpty());
  EXPECT_THAT(tokens_of({ids[0], tokenizer().size()}), IsEmpty());
}

TEST_F(ConversationFile, RefusesWhatIsNoConversation) {
  EXPECT_THAT(error_text([&] { load(""); }), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_text([&] { load("[1, 2]"); }), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_text([&] { load("{\"format\": \"\xFF\"}"); }), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_text([&] { load("{\"messages\": []}"); }), HasSubstr("not a saved conversation"));
  EXPECT_THAT(error_text([&] { load("{\"format\": \"gemma-run chat 2\", \"messages\": []}"); }), HasSubstr("chat 1"));
  EXPECT_THAT(refusal("\"messages\": 7"), HasSubstr("not a list of messages"));
  EXPECT_THAT(refusal("\"system\": \"x\""), HasSubstr("has no 'messages'"));
  EXPECT_THAT(refusal("\"system\": 1, \"messages\": []"), HasSubstr("'system'"));
  EXPECT_THAT(refusal("\"dropped\": -1, \"messages\": []"), HasSubstr("out of range"));
  EXPECT_THAT(refusal("\"dropped\": 2147483647, \"messages\": []"), HasSubstr("out of range"));
}

TEST_F(ConversationFile, RefusesMessagesThatDoNotAlternate) {
  const std::string user = R"({"role": "user", "content": "x"})";
  const std::string model = R"({"role": "model", "content": "x"})";
  const auto messages = [](const std::string& list) { return "\"messages\": [" + list + "]"; };
  EXPECT_THAT(refusal(messages(user)), HasSubstr("ends with an answer"));
  EXPECT_THAT(refusal(messages(model + "," + user)), HasSubstr("alternate"));
  EXPECT_THAT(refusal(messages(user + "," + user)), HasSubstr("alternate"));
  EXPECT_THAT(refusal(messages(user + "," + model + ",1,2")), HasSubstr("messages 2 and 3"));
  EXPECT_THAT(refusal(messages(user + R"(,{"role": "model"})")), HasSubstr("has no 'content'"));
  EXPECT_THAT(refusal(messages(user + R"(,{"role": "model", "content": 5})")), HasSubstr("'content'"));
}

TEST_F(ConversationFile, RefusesIdsThatAreNone) {
  for (const char* tokens : {"7", "[1.5]", "[\"1\"]", "[-1]", "[99999999999]", "[[1]]"}) {
    EXPECT_THAT(
        refusal(R"("messages": [{"role": "user", "content": "x"}, {"role": "model", "content": "x", "tokens": )" +
                std::string(tokens) + "}]"),
        HasSubstr("tokens"))
        << tokens;
  }
}

TEST_F(ConversationFile, RefusesFilesThatCannotBeOne) {
  const auto refusal_of = [](const std::string& path) {
    return error_text([&] { load_conversation(path, tokenizer()); });
  };
  EXPECT_THAT(refusal_of(folder_ / "missing.json"), HasSubstr("missing.json"));
  EXPECT_THAT(refusal_of(folder_.path()), HasSubstr("is a directory"));
  EXPECT_THAT(refusal_of("/dev/zero"), HasSubstr("not a regular file"));
  write(std::string((4u << 20) + 1, ' '));
  EXPECT_THAT(refusal_of(path()), HasSubstr("larger"));
}

TEST_F(ConversationFile, StaysAsItWasWhenItCannotBeWritten) {
  EXPECT_THAT(error_text([&] { save_conversation({}, "m", folder_ / "no" / "such.json"); }), HasSubstr("cannot write"));
  EXPECT_THAT(error_text([&] { save_conversation({}, "m", folder_.path()); }), HasSubstr("is a directory"));
}

}  // namespace
}  // namespace gemma::cli
