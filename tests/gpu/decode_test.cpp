// The decode kernel alone: texts whose every token is a generated row, from an empty cache, so that no kernel of the
// prompt path (and none of cuBLAS's) runs. Every position's logits are held to the naive reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "model/model_file.h"
#include "support/naive.h"
#include "support/reader.h"

namespace gemma {
namespace {

// The reference rounds to bf16 what the kernel rounds: keys, values, and the inputs of products. A sum in float32 now
// and then falls on the other side of a rounding boundary than the reference's in double precision, which moves that
// one number by 2^-8, and with it the logits: on an H100 by up to 0.0126, and by 0.0035 in the root mean square. A
// reference that does not round inputs differs by 1e-2 to 4e-2, and never by less than 3.9e-3 in the root mean square.
constexpr double kLargest = 2.5e-2;
constexpr double kTypical = 3.8e-3;
// With quantised weights both round to whole numbers in units of a power of two as well. There are more boundaries
// then, and numbers beside a large one move by more of themselves: logits by up to 0.0275 on an H200. What holds the
// rounding is the root mean square; a reference that does not round normalised inputs differs by 3.96e-3 in SIMT.
constexpr double kLargestOfWholeNumbers = 4e-2;

struct Shape {
  std::string name;  ///< letters and digits: it becomes part of a test's name
  int head_dim = 64;
  int kv_heads = 1;
  int heads_per_kv_head = 2;
  int window = 7;
  int hidden = 64;
  int intermediate = 96;
  int layers = 2;
  int vocab = 67;
  std::vector<int> texts;  ///< tokens of the sequences that are decoded side by side
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

Model model_of(const Shape& shape, WeightTypes types) {
  Config config;
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.intermediate;
  config.heads = shape.kv_heads * shape.heads_per_kv_head;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.vocab_size = shape.vocab;
  config.window = shape.window;
  config.context = 2048;
  config.query_pre_attn_scalar = shape.head_dim;
  config.layers = alternating_layers(shape.layers);
  return random_model(config, 41, /*cheap=*/false, types);
}

std::vector<std::vector<int>> texts_of(const Shape& shape) {
  std::vector<std::vector<int>> texts;
  for (const int tokens : shape.texts)
    texts.push_back(random_tokens(tokens, shape.vocab, static_cast<unsigned>(texts.size()) + 1));
  return texts;
}

Reader reader_of(const Model& model, const std::vector<std::vector<int>>& texts, std::size_t sequences) {
  std::size_t longest = 0;
  for (const std::vector<int>& text : texts) longest = std::max(longest, text.size());
  ReaderOptions options;
  options.max_rows = static_cast<int>(sequences);
  options.sequences = static_cast<int>(sequences);
  options.context = static_cast<int>(longest);
  return Reader(device_kinds().back(), model, options);
}

/// Decodes texts that all end with the same step: a long one begins on its own, shorter ones join it.
std::vector<Logits> decode_together(const Model& model, const std::vector<std::vector<int>>& texts) {
  Reader reader = reader_of(model, texts, texts.size());
  std::vector<KvCache::Id> ids;
  std::size_t longest = 0;
  for (const std::vector<int>& text : texts) {
    ids.push_back(reader.cache().create(static_cast<int>(text.size())));
    longest = std::max(longest, text.size());
  }
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

/// Decodes one text after the other.
std::vector<Logits> decode_alone(const Model& model, const std::vector<std::vector<int>>& texts) {
  Reader reader = reader_of(model, texts, 1);
  std::vector<Logits> logits;
  for (const std::vector<int>& text : texts) {
    const KvCache::Id id = reader.cache().create(static_cast<int>(text.size()));
    logits.push_back(reader.read(id, text, 1, RowKind::kGenerated));
    reader.cache().remove(id);
  }
  return logits;
}

void expect_naive(const Model& model, std::span<const int> text, const Logits& logits) {
  naive::Departures departures;
  departures.cache = KvType::kBf16;
  const bool is_bf16 = model.weights.layers[0].qkv.type == WeightType::kBf16;
  departures.rounded_inputs = is_bf16 ? naive::RoundedInputs::kBf16 : naive::RoundedInputs::kWholeNumbers;
  const naive::Vectors expected = naive::forward(model, text, departures).logits;
  ASSERT_EQ(logits.size(), expected.size());
  for (std::size_t position = 0; position < expected.size(); ++position) {
    ASSERT_LT(largest_difference({logits[position]}, {expected[position]}), is_bf16 ? kLargest : kLargestOfWholeNumbers)
        << "at position " << position;
  }
  EXPECT_LT(typical_difference(logits, expected), kTypical);
}

/// Holds texts decoded together to the bits of each on its own, and these to the reference.
void expect_right(const Shape& shape, WeightTypes types = {}) {
  constexpr std::size_t kCompared = 4;  // texts, with the reference
  const Model model = model_of(shape, types);
  const std::vector<std::vector<int>> texts = texts_of(shape);
  const std::vector<Logits> alone = decode_alone(model, texts);
  const std::vector<Logits> together = decode_together(model, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE("text " + std::to_string(i) + " of " + std::to_string(texts.size()));
    EXPECT_EQ(first_difference(together[i], alone[i]), "") << "together against alone";
    if (i < kCompared) expect_naive(model, texts[i], alone[i]);
  }
}

/// Lengths of `count` texts, from `shortest` to `longest` in no order.
std::vector<int> lengths(int count, int shortest, int longest) {
  std::vector<int> texts;
  for (int i = 0; i < count; ++i) texts.push_back(shortest + i * 11 % (longest - shortest + 1));
  return texts;
}

using Parameters = std::tuple<Shape, WeightTypes>;

class Decode : public ::testing::TestWithParam<Parameters> {};

TEST_P(Decode, MatchesNaiveArithmeticAtEveryPosition) {
  expect_right(std::get<0>(GetParam()), std::get<1>(GetParam()));
}

/// Each pair of types has kernels of its own. With layers in q4, a head in q8 comes in pieces of half as many columns.
const auto kEachTypes =
    ::testing::Values(WeightTypes{}, WeightTypes{WeightType::kQ8, WeightType::kQ8},
                      WeightTypes{WeightType::kQ4, WeightType::kQ8}, WeightTypes{WeightType::kQ4, WeightType::kQ4});

std::string name_of_test(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [shape, types] = info.param;
  std::string name = shape.name + "_" + std::string(name_of(types.layers));
  if (types.embed != types.layers) name += "_" + std::string(name_of(types.embed)) + "Head";
  return name;
}

// Keys are worked on in blocks of 64 and by two heads at once. Texts are long enough that rings wrap.
INSTANTIATE_TEST_SUITE_P(
    Shapes, Decode,
    ::testing::Combine(
        ::testing::Values(
            Shape{.name = "OneSequence", .texts = {150}},
            Shape{.name = "SequencesOfDifferentLengths", .texts = {71, 190, 5}},
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
            Shape{.name = "ColumnsOfMoreThanAPiece", .hidden = 608, .layers = 3, .texts = {20, 70}},
            // Quantised weights come in units of 256 columns: one and a quarter, and four and a half pieces of two.
            Shape{.name = "ColumnsOfAUnitAndABit", .hidden = 320, .intermediate = 288, .texts = {20, 70}},
            Shape{.name = "ColumnsOfNineUnits", .hidden = 2304, .texts = {10, 70}}),
        kEachTypes),
    name_of_test);

// Up to 8, 16, 32 and 64 rows have kernels of their own; texts begin one after the other, so that a step has any number
// of rows up to that of the texts.
INSTANTIATE_TEST_SUITE_P(
    ManyRows, Decode,
    ::testing::Combine(
        ::testing::Values(
            Shape{.name = "NineSequences", .heads_per_kv_head = 3, .hidden = 96, .texts = lengths(9, 10, 60)},
            Shape{.name = "SixteenSequences", .texts = lengths(16, 10, 60)},
            Shape{.name = "SeventeenSequences", .texts = lengths(17, 10, 60)},
            Shape{.name = "ThirtyTwoSequences", .head_dim = 48, .kv_heads = 2, .texts = lengths(32, 10, 50)},
            Shape{.name = "ThirtyThreeSequences", .heads_per_kv_head = 3, .hidden = 96, .texts = lengths(33, 10, 50)},
            Shape{.name = "SixtyFourSequences", .texts = lengths(64, 3, 70)},
            Shape{.name = "MoreSequencesThanALaunchTakes", .texts = lengths(67, 3, 40)},
            Shape{.name = "ManyRowsOfHeadsOf32",
                  .head_dim = 32,
                  .kv_heads = 2,
                  .heads_per_kv_head = 4,
                  .texts = lengths(40, 3, 30)},
            Shape{.name = "ManyRowsOfHeadsOf256", .head_dim = 256, .kv_heads = 2, .texts = lengths(64, 3, 30)},
            Shape{.name = "ManyRowsOfAKeyForEveryHead",
                  .kv_heads = 4,
                  .heads_per_kv_head = 1,
                  .texts = lengths(50, 3, 30)},
            Shape{.name = "ManyLongRows", .window = 100, .texts = lengths(24, 60, 300)},
            // Two pieces of columns and nine, the last ones shorter; on each multiprocessor several tiles of gate_up
            // and head.
            Shape{.name = "ManyTilesForTwelveRows",
                  .hidden = 608,
                  .intermediate = 4256,
                  .vocab = 20001,
                  .texts = lengths(12, 2, 5)},
            Shape{.name = "ManyTilesForTwentyRows",
                  .hidden = 608,
                  .intermediate = 4256,
                  .vocab = 20001,
                  .texts = lengths(20, 2, 5)},
            Shape{.name = "ManyTilesForFiftyRows",
                  .hidden = 608,
                  .intermediate = 4256,
                  .vocab = 20001,
                  .texts = lengths(50, 2, 5)}),
        kEachTypes),
    name_of_test);

// Beyond 16 blocks of 64 keys, attention is combined in two levels: in the global layer from position 1024 on, and in
// the local one with groups that do not begin at the text's first block.
TEST(LongTextDecode, CombinesGroupsOfBlocksBeyond1024Keys) {
  expect_right({.name = "", .head_dim = 32, .window = 1050, .hidden = 32, .texts = {1300, 1100}});
}

// Few steps of a tiny model, for tools under which kernels are a hundred times slower.
TEST(ShortDecode, IsRightForOneSequence) { expect_right({.name = "", .texts = {20}}); }

TEST(ShortDecode, IsRightForTwelveSequences) { expect_right({.name = "", .texts = lengths(12, 2, 5)}); }

TEST(ShortDecode, IsRightForTwentySequences) { expect_right({.name = "", .texts = lengths(20, 2, 5)}); }

TEST(ShortDecode, IsRightForFortySequences) { expect_right({.name = "", .texts = lengths(40, 2, 5)}); }

// Whose products of `down` are added up by all thread blocks.
TEST(ShortDecode, IsRightForNineSequencesOfWideLayers) {
  expect_right({.name = "", .intermediate = 12'352, .texts = lengths(9, 2, 2)});
}

TEST(ShortDecode, IsRightForOneSequenceInQ8) {
  expect_right({.name = "", .texts = {20}}, {WeightType::kQ8, WeightType::kQ8});
}

TEST(ShortDecode, IsRightForThreeSequencesInQ4) {
  expect_right({.name = "", .texts = {20, 13, 3}}, {WeightType::kQ4, WeightType::kQ8});
}

// Rows of two whole units of weights and of one with few columns, in fragments of 16 and of 64 rows.
TEST(ShortDecode, IsRightForTwelveSequencesInQ8) {
  expect_right({.name = "", .hidden = 544, .intermediate = 288, .texts = lengths(12, 2, 3)},
               {WeightType::kQ8, WeightType::kQ8});
}

TEST(ShortDecode, IsRightForFortySequencesInQ4) {
  expect_right({.name = "", .hidden = 288, .intermediate = 544, .texts = lengths(40, 2, 3)},
               {WeightType::kQ4, WeightType::kQ8});
}

TEST(ShortDecode, IsRightForThreeSequences) {
  expect_right({.name = "", .head_dim = 48, .kv_heads = 2, .heads_per_kv_head = 4, .texts = {20, 13, 3}});
}

}  // namespace
}  // namespace gemma
