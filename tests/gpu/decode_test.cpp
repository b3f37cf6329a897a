// The decode kernel alone: texts whose every token is a generated row, from an empty cache, so that no kernel of the
// prompt path (and none of cuBLAS's) runs. Every position's logits are held to the naive reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "model/model_file.h"
#include "support/naive.h"
#include "support/reader.h"

namespace gemma {
namespace {

// The reference rounds to bf16 what the kernel rounds: keys, values, and the inputs of products. A sum in float32 now
// and then falls on the other side of a rounding boundary than the reference's in double precision, which moves that
// one number by 2^-8. Without the rounding of inputs in the reference the logits differ by 1e-2 to 4e-2, and never by
// less than 3.9e-3 in the root mean square.
constexpr double kLargest = 1e-2;
constexpr double kTypical = 2e-3;

struct Shape {
  std::string name;  ///< letters and digits: it becomes part of a test's name
  int head_dim = 64;
  int kv_heads = 1;
  int heads_per_kv_head = 2;
  int window = 7;
  int hidden = 64;
  int intermediate = 96;
  int layers = 2;
  std::vector<int> texts;  ///< tokens of the sequences that are decoded side by side
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

Model model_of(const Shape& shape) {
  Config config;
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.intermediate;
  config.heads = shape.kv_heads * shape.heads_per_kv_head;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.vocab_size = 67;
  config.window = shape.window;
  config.context = 2048;
  config.query_pre_attn_scalar = shape.head_dim;
  config.layers = alternating_layers(shape.layers);
  return random_model(config, 41);
}

std::vector<std::vector<int>> texts_of(const Shape& shape) {
  std::vector<std::vector<int>> texts;
  for (const int tokens : shape.texts)
    texts.push_back(random_tokens(tokens, 67, static_cast<unsigned>(texts.size()) + 1));
  return texts;
}

/// Decodes texts that all end with the same step: a long one begins on its own, shorter ones join it.
std::vector<Logits> decode(const Model& model, const std::vector<std::vector<int>>& texts) {
  std::size_t longest = 0;
  for (const std::vector<int>& text : texts) longest = std::max(longest, text.size());
  ReaderOptions options;
  options.max_rows = static_cast<int>(texts.size());
  options.sequences = static_cast<int>(texts.size());
  options.context = static_cast<int>(longest);
  Reader reader(device_kinds().back(), model, options);

  std::vector<KvCache::Id> ids;
  for (const std::vector<int>& text : texts) ids.push_back(reader.cache().create(static_cast<int>(text.size())));
  std::vector<Logits> logits(texts.size());
  for (std::size_t left = longest; left > 0; --left) {
    std::vector<Passage> passages;
    std::vector<std::size_t> of_passage;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (texts[i].size() < left) continue;
      passages.push_back({ids[i], {texts[i][texts[i].size() - left]}, RowKind::kGenerated});
      of_passage.push_back(i);
    }
    const std::vector<Logits> step = reader.step(passages);
    for (std::size_t i = 0; i < step.size(); ++i) append(logits[of_passage[i]], step[i]);
  }
  return logits;
}

void expect_naive(const Model& model, std::span<const int> text, const Logits& logits) {
  naive::Departures departures;
  departures.cache = KvType::kBf16;
  departures.rounds_inputs = true;
  const naive::Vectors expected = naive::forward(model, text, departures).logits;
  ASSERT_EQ(logits.size(), expected.size());
  for (std::size_t position = 0; position < expected.size(); ++position) {
    ASSERT_LT(largest_difference({logits[position]}, {expected[position]}), kLargest) << "at position " << position;
  }
  EXPECT_LT(typical_difference(logits, expected), kTypical);
}

void expect_right(const Shape& shape) {
  const Model model = model_of(shape);
  const std::vector<std::vector<int>> texts = texts_of(shape);
  const std::vector<Logits> together = decode(model, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE("text " + std::to_string(i) + " of " + std::to_string(texts.size()));
    expect_naive(model, texts[i], together[i]);
    if (texts.size() == 1) continue;
    EXPECT_EQ(first_difference(together[i], decode(model, {texts[i]}).front()), "") << "together against alone";
  }
}

class Decode : public ::testing::TestWithParam<Shape> {};

TEST_P(Decode, MatchesNaiveArithmeticAtEveryPosition) { expect_right(GetParam()); }

// Keys are worked on in blocks of 64 and by two heads at once. Texts are long enough that rings wrap.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Decode,
    ::testing::Values(
        Shape{.name = "OneSequence", .texts = {150}},
        Shape{.name = "SequencesOfDifferentLengths", .texts = {71, 190, 5}},
        Shape{.name = "MoreSequencesThanALaunchTakes",
              .texts = {20, 19, 18, 66, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 21}},
        Shape{.name = "HeadsOf32", .head_dim = 32, .kv_heads = 2, .texts = {80, 70, 33}},
        Shape{.name = "HeadsOf48", .head_dim = 48, .kv_heads = 2, .texts = {80, 70, 33}},
        Shape{.name = "HeadsOf80", .head_dim = 80, .kv_heads = 2, .texts = {80, 70, 33}},
        Shape{.name = "HeadsOf128", .head_dim = 128, .kv_heads = 2, .texts = {80, 70, 33}},
        Shape{.name = "HeadsOf256", .head_dim = 256, .kv_heads = 2, .texts = {80, 70, 33}},
        Shape{.name = "AKeyOfItsOwnForEveryHead", .kv_heads = 4, .heads_per_kv_head = 1, .texts = {80, 70, 33}},
        Shape{.name = "FourHeadsOnAKey", .kv_heads = 2, .heads_per_kv_head = 4, .texts = {80, 70, 33}},
        Shape{.name = "ThreeHeadsOnAKey", .kv_heads = 2, .heads_per_kv_head = 3, .texts = {80, 70, 33}},
        Shape{.name = "WindowOf1", .window = 1, .texts = {140, 130, 66}},
        Shape{.name = "WindowOf64", .window = 64, .texts = {200, 130, 66}},
        Shape{.name = "WindowOf100", .window = 100, .texts = {330, 260, 99}},
        // Only with more tiles than a GPU has multiprocessors are tiles divided between them.
        Shape{.name = "TilesThatBlocksShare", .hidden = 1088, .intermediate = 1600, .texts = {4, 68}},
        Shape{.name = "ColumnsOfMoreThanAPiece", .hidden = 608, .layers = 3, .texts = {20, 70}}),
    [](const auto& param) { return param.param.name; });

// Beyond 16 blocks of 64 keys, attention is combined in two levels: in the global layer from position 1024 on, and in
// the local one with groups that do not begin at the text's first block.
TEST(LongTextDecode, CombinesGroupsOfBlocksBeyond1024Keys) {
  expect_right({.name = "", .head_dim = 32, .window = 1050, .hidden = 32, .texts = {1300, 1100}});
}

// Few steps of a tiny model, for tools under which kernels are a hundred times slower.
TEST(ShortDecode, IsRightForOneSequence) { expect_right({.name = "", .texts = {20}}); }

TEST(ShortDecode, IsRightForThreeSequences) {
  expect_right({.name = "", .head_dim = 48, .kv_heads = 2, .heads_per_kv_head = 4, .texts = {20, 13, 3}});
}

}  // namespace
}  // namespace gemma
