#include "gemma/tokenizer.h"

#include <gmock/gmock.h>
#include <sentencepiece_processor.h>

#include <random>

#include "gemma/error.h"
#include "tokenizer_fixture.h"

namespace gemma {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<int> with_bos(std::vector<int> ids) {
  ids.insert(ids.begin(), demo_tokenizer().bos());
  return ids;
}

// SentencePiece itself on the model as it was trained, with nothing withheld.
const sentencepiece::SentencePieceProcessor& sentence_piece() {
  static const auto processor = [] {
    auto made = std::make_unique<sentencepiece::SentencePieceProcessor>();
    if (!made->LoadFromSerializedProto(tokenizer_model()).ok()) throw std::runtime_error("bad golden tokenizer");
    return made;
  }();
  return *processor;
}

TEST(Tokenizer, GivesTheIdsThatTransformersGives) {
  int texts = 0;
  for (const auto& prompt : reference()["prompts"]) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    const auto ids = prompt["ids"].get<std::vector<int>>();
    if (prompt["text"].is_null()) continue;
    const auto text = prompt["text"].get<std::string>();
    if (prompt["text_is"] == "chat markup; the markers are single special ids") {
      EXPECT_EQ(with_bos(demo_tokenizer().encode(text, ControlTokens::kParse)), ids);
    } else {
      EXPECT_EQ(with_bos(demo_tokenizer().encode(text)), ids);
    }
    ++texts;
  }
  EXPECT_EQ(texts, 7);
}

// The reference keeps the names of turns in its decoded texts; here control tokens have no text.
std::string without_turns(std::string text) {
  for (const std::string name : {"<start_of_turn>", "<end_of_turn>"}) {
    for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name)) text.erase(at, name.size());
  }
  return text;
}

TEST(Tokenizer, DecodesWhatTransformersDecodes) {
  for (const auto& prompt : reference()["prompts"]) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    EXPECT_EQ(demo_tokenizer().decode(prompt["ids"].get<std::vector<int>>()),
              without_turns(prompt["decoded"].get<std::string>()));
    EXPECT_EQ(demo_tokenizer().decode(prompt["greedy"].get<std::vector<int>>()),
              without_turns(prompt["greedy_text"].get<std::string>()));
  }
}

TEST(Tokenizer, KnowsGemmasControlTokens) {
  const Tokenizer& tokenizer = demo_tokenizer();
  EXPECT_EQ(tokenizer.size(), 4096);
  EXPECT_EQ(tokenizer.eos(), 1);
  EXPECT_EQ(tokenizer.bos(), 2);
  EXPECT_EQ(tokenizer.start_of_turn(), 5);
  EXPECT_EQ(tokenizer.end_of_turn(), 6);
  for (int id = 0; id <= 6; ++id) EXPECT_TRUE(tokenizer.is_control(id)) << id;
  for (int id = 7; id < tokenizer.size(); ++id) EXPECT_FALSE(tokenizer.is_control(id)) << id;
  EXPECT_EQ(tokenizer.piece(2), "<bos>");
  EXPECT_EQ(tokenizer.piece(8), "\n\n");
  EXPECT_EQ(tokenizer.piece(11), "\u2581\u2581");
}

TEST(Tokenizer, NeverMakesControlTokensFromText) {
  const Tokenizer& tokenizer = demo_tokenizer();
  const std::vector<std::string> texts = {"<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
                                          "<bos>",
                                          "<eos>",
                                          "<pad>",
                                          "<mask>",
                                          "<unk>",
                                          "a<end_of_turn>",
                                          "<<start_of_turn>>",
                                          "<start_of_<start_of_turn>turn>",
                                          "<end_of_turn><end_of_turn>",
                                          "<0x0A>"};
  for (const std::string& text : texts) {
    const std::vector<int> ids = tokenizer.encode(text);
    for (const int id : ids) EXPECT_FALSE(tokenizer.is_control(id)) << text << " has " << tokenizer.piece(id);
    EXPECT_EQ(tokenizer.decode(ids), text);
  }
}

TEST(Tokenizer, ParsesControlTokensWhenAsked) {
  const Tokenizer& tokenizer = demo_tokenizer();
  EXPECT_THAT(tokenizer.encode("<bos>", ControlTokens::kParse), ElementsAre(2));
  EXPECT_THAT(tokenizer.encode("<<bos>><eos>", ControlTokens::kParse),
              ElementsAre(tokenizer.encode("<").at(0), 2, tokenizer.encode(">").at(0), 1));
  EXPECT_EQ(tokenizer.encode("<start_of_tur", ControlTokens::kParse), tokenizer.encode("<start_of_tur"));
  EXPECT_EQ(tokenizer.encode("[<]", ControlTokens::kParse), tokenizer.encode("[<]"));
}

TEST(Tokenizer, AgreesWithSentencePieceOnRandomText) {
  std::mt19937 random(7);
  const std::vector<std::string> parts = {" ",
                                          "  ",
                                          "   ",
                                          "\n",
                                          "\n\n",
                                          "\t",
                                          "a",
                                          "the",
                                          "<",
                                          ">",
                                          "once upon",
                                          "Zo\u00EB",
                                          "\u4E16",
                                          "\U0001F600",
                                          "\u2581",
                                          "12",
                                          "<b>",
                                          "start_of_turn",
                                          std::string(1, '\0')};
  for (int trial = 0; trial < 500; ++trial) {
    std::string text;
    for (int i = 0; i < trial % 20; ++i) text += parts[random() % parts.size()];
    std::vector<int> expected;
    ASSERT_TRUE(sentence_piece().Encode(text, &expected).ok());
    EXPECT_EQ(demo_tokenizer().encode(text), expected) << text;
  }
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8AndNamesTheOffset) {
  const std::vector<std::pair<std::string, int>> texts = {{"abc\xFF", 3},
                                                          {"\x80", 0},
                                                          {"ab\xC3", 2},
                                                          {"\xE2\x82", 0},
                                                          {"a\xC0\x80", 1},
                                                          {"\xED\xA0\x80", 0},
                                                          {"\u00E9\xF4\x90\x80\x80", 2},
                                                          {"\xE0\x80\xAF", 0},
                                                          {"\xF0\x8F\xBF\xBF", 0},
                                                          {"\xF5\x80\x80\x80", 0}};
  for (const auto& [text, offset] : texts) {
    EXPECT_THAT([&text = text] { demo_tokenizer().encode(text); },
                ThrowsMessage<Error>(HasSubstr("bad byte at offset " + std::to_string(offset) + ";")));
  }
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  for (const int id : {-1, 4096, 1 << 30}) {
    const std::vector<int> ids = {506, id};
    EXPECT_THROW(demo_tokenizer().decode(ids), Error);
    EXPECT_THROW(demo_tokenizer().piece(id), Error);
    EXPECT_THROW(demo_tokenizer().is_control(id), Error);
    StreamingDetokenizer stream(demo_tokenizer());
    EXPECT_THROW(stream.push(id), Error);
  }
}

int byte_id(unsigned char byte) {
  static const int first = sentence_piece().PieceToId("<0x00>");
  return first + byte;
}

// Random sequences in which broken and whole characters in byte pieces, control tokens and ordinary pieces meet.
std::vector<int> random_ids(std::mt19937& random, int count) {
  static const std::vector<std::string> fragments = {"\u20AC", "\U0001F600", "\xE2\x82",     "\xF0\x9F", "\x80",
                                                     "\xC3",   "\xFF",       "\xED\xA0\x80", "A"};
  std::vector<int> ids;
  while (static_cast<int>(ids.size()) < count) {
    switch (random() % 4) {
      case 0:
        for (const char byte : fragments[random() % fragments.size()])
          ids.push_back(byte_id(static_cast<unsigned char>(byte)));
        break;
      case 1:
        ids.push_back(byte_id(static_cast<unsigned char>(random() % 256)));
        break;
      case 2:
        ids.push_back(static_cast<int>(random() % 7));
        break;
      default:
        ids.push_back(static_cast<int>(random() % 4096));
        break;
    }
  }
  return ids;
}

TEST(Tokenizer, DecodesByteSequencesAsSentencePieceDoes) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<int> ids = random_ids(random, 12);
    // SentencePiece spells these out, where this tokenizer leaves them out; <pad> it leaves out, too.
    for (int& id : ids) {
      if (id >= 3 && id <= 6) id = 0;
    }
    std::string expected;
    ASSERT_TRUE(sentence_piece().Decode(ids, &expected).ok());
    EXPECT_EQ(demo_tokenizer().decode(ids), expected);
  }
}

bool is_utf8(const std::string& text) {
  try {
    demo_tokenizer().encode(text);
    return true;
  } catch (const Error&) {
    return false;
  }
}

TEST(StreamingDetokenizer, GivesWholeCharactersThatJoinToTheDecodedText) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 2000; ++trial) {
    const std::vector<int> ids = random_ids(random, trial % 30);
    StreamingDetokenizer stream(demo_tokenizer());
    std::string joined;
    for (const int id : ids) {
      const std::string text = stream.push(id);
      EXPECT_TRUE(is_utf8(text));
      joined += text;
    }
    const std::string rest = stream.finish();
    EXPECT_TRUE(is_utf8(rest));
    EXPECT_EQ(joined + rest, demo_tokenizer().decode(ids));
  }
}

TEST(StreamingDetokenizer, HoldsBytesOnlyWhileTheyMayBecomeACharacter) {
  const std::string replacement = "\uFFFD";
  StreamingDetokenizer stream(demo_tokenizer());
  EXPECT_EQ(stream.push(byte_id(0xF0)), "");
  EXPECT_EQ(stream.push(byte_id(0x9F)), "");
  EXPECT_EQ(stream.push(byte_id(0x98)), "");
  EXPECT_EQ(stream.push(byte_id(0x80)), "\U0001F600");
  EXPECT_EQ(stream.push(byte_id(0xFF)), replacement);
  EXPECT_EQ(stream.push(byte_id(0xE2)), "");
  EXPECT_EQ(stream.push(byte_id(0xE2)), replacement);
  EXPECT_EQ(stream.push(byte_id('A')), replacement + "A");
  EXPECT_EQ(stream.push(byte_id(0xED)), "");
  EXPECT_EQ(stream.push(byte_id(0xA0)), replacement + replacement);
  EXPECT_EQ(stream.push(byte_id(0xC3)), "");
  EXPECT_EQ(stream.push(demo_tokenizer().bos()), replacement);
  EXPECT_EQ(stream.push(byte_id(0xA9)), replacement);
  EXPECT_EQ(stream.push(byte_id(0xE2)), "");
  EXPECT_EQ(stream.push(byte_id(0x82)), "");
  EXPECT_EQ(stream.finish(), replacement + replacement);
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamingDetokenizer, KeepsLeadingSpaces) {
  StreamingDetokenizer stream(demo_tokenizer());
  const std::vector<int> ids = demo_tokenizer().encode(" once  upon");
  std::string joined;
  for (const int id : ids) joined += stream.push(id);
  EXPECT_EQ(joined, " once  upon");
}

TEST(HostileTokenizer, IsRefusedWhenItIsNotASentencePieceModel) {
  EXPECT_THROW(Tokenizer{""}, Error);
  EXPECT_THROW(Tokenizer{"garbage"}, Error);
  EXPECT_THROW(Tokenizer{std::string(1000, '\xFF')}, Error);
  EXPECT_THROW(Tokenizer{std::string(1000, '\0')}, Error);
  EXPECT_THROW(Tokenizer{"{\"version\": \"1.0\"}"}, Error);
}

TEST(HostileTokenizer, IsRefusedWhereverItIsCutOff) {
  for (std::size_t size = 0; size < tokenizer_model().size(); size += size < 300 ? 1 : 997) {
    EXPECT_THROW(Tokenizer{std::string_view(tokenizer_model()).substr(0, size)}, Error) << size;
  }
}

// Flipped bits may leave a model that loads. It must then work, if on other pieces.
TEST(HostileTokenizer, NeverCrashesWhenBitsAreFlipped) {
  std::mt19937 random(3);
  int loaded = 0;
  constexpr int kTrials = 300;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::string model = tokenizer_model();
    // The settings stand at the end, and are worth every second try.
    const std::size_t range = trial % 2 == 0 ? model.size() : 300;
    for (unsigned flips = 0; flips <= random() % 3; ++flips) {
      model[model.size() - 1 - random() % range] ^= static_cast<char>(1u << (random() % 8));
    }
    try {
      const Tokenizer tokenizer(model);
      const std::vector<int> ids =
          tokenizer.encode("Once  upon a time,\n\n\u4E16 <start_of_turn>", ControlTokens::kParse);
      tokenizer.decode(ids);
      ++loaded;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, kTrials);
}

// Fields of the normaliser that come later in the file override those before.
std::string with_normalizer(const std::string& fields) {
  std::string model = tokenizer_model() + "\x1A";
  model += static_cast<char>(fields.size());
  return model + fields;
}

TEST(ForeignTokenizer, IsRefusedByWhatMakesItForeign) {
  const std::vector<std::pair<std::string, std::string>> changes = {
      {std::string("\x12\x01x"), "normalises text with a table"},
      {std::string("\x18\x01"), "puts a space in front of every text"},
      {std::string("\x20\x01"), "removes spaces"},
      {std::string("\x28\x00", 2), "does not write spaces"},
  };
  for (const auto& [fields, message] : changes) {
    const std::string model = with_normalizer(fields);
    EXPECT_THAT([&] { Tokenizer{model}; }, ThrowsMessage<Error>(HasSubstr(message)));
  }
  const std::string unigram = tokenizer_model() + std::string("\x12\x02\x18\x01");
  EXPECT_THAT([&] { Tokenizer{unigram}; }, ThrowsMessage<Error>(HasSubstr("byte-pair encoding")));
}

}  // namespace
}  // namespace gemma
