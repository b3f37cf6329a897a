#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "support/reader.h"
#include "support/small_model.h"
#include "unit/device/device_test.h"

namespace gemma {
namespace {

naive::Answer naive_answer(const DeviceKind& kind, const Model& model, std::span<const int> tokens) {
  naive::Departures departures;
  departures.cache = kind.cache;
  return naive::forward(model, tokens, departures);
}

// A model shape, a text and a way to read it, drawn by number: each list is walked through evenly, with strides that
// pair its entries with different ones of the other lists.
struct Case {
  Config config;
  int length = 0;
  int chunk = 0;
  int generated = 0;  ///< so many of the last tokens are read one by one as generated rows
};

constexpr int kCases = 36;

Case drawn_case(int number, const DeviceKind& kind) {
  constexpr int kRatios[] = {1, 2, 4, 8};
  constexpr int kHeadDims[] = {32, 48, 64, 80, 96, 112, 128, 160, 192, 240, 256};
  constexpr int kWindows[] = {1, 2, 7, 64, 65, 100, 128, 1000};
  constexpr int kLengths[] = {1, 63, 64, 65, 129, 200, 257};
  std::mt19937 random(static_cast<unsigned>(number) + 1);
  const auto below = [&](unsigned limit) { return static_cast<int>(random() % limit); };
  const auto widened = [&](int width) {
    return (width + kind.width_multiple - 1) / kind.width_multiple * kind.width_multiple;
  };

  Case drawn;
  Config& config = drawn.config;
  config.hidden_size = widened(16 + 4 * below(16));
  config.intermediate_size = widened(24 + 8 * below(12));
  config.head_dim = kHeadDims[number % std::size(kHeadDims)];
  const int ratio = kRatios[number % std::size(kRatios)];
  config.kv_heads = ratio == 8 || number % 3 == 0 ? 1 : 1 + below(3);
  while (ratio * config.kv_heads * config.head_dim % kind.width_multiple != 0) ++config.kv_heads;
  config.heads = ratio * config.kv_heads;
  config.vocab_size = 33 + below(64);
  config.window = kWindows[(number + number / 8) % std::size(kWindows)];
  config.context = 512;
  config.query_pre_attn_scalar = config.head_dim + 16 * below(3);
  config.rope_theta = number % 5 == 0 ? 500.0 : 10000.0;
  if (number % 6 == 1) config.attention_softcap.reset();
  if (number % 6 == 3) config.final_softcap.reset();
  config.is_embedding_tied = number % 7 != 2;
  config.layers = alternating_layers(1 + below(4));
  if (number % 9 == 4) std::fill(config.layers.begin(), config.layers.end(), LayerKind::kLocal);
  if (number % 9 == 5) std::fill(config.layers.begin(), config.layers.end(), LayerKind::kGlobal);
  if (number % 9 == 6) config.layers = {LayerKind::kGlobal, LayerKind::kLocal, LayerKind::kLocal};

  drawn.length = kLengths[number % std::size(kLengths)] + below(3);
  const int chunks[] = {1, 3, 64, config.window + 5, 300};
  drawn.chunk = std::min(chunks[number % std::size(chunks)], drawn.length);
  drawn.generated = std::min(drawn.length / 2, below(20));
  return drawn;
}

std::string described(const Case& drawn) {
  const Config& c = drawn.config;
  std::string layers;
  for (LayerKind kind : c.layers) layers += kind == LayerKind::kLocal ? 'L' : 'G';
  return std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.head_dim) +
         ", hidden " + std::to_string(c.hidden_size) + ", window " + std::to_string(c.window) + ", layers " + layers +
         ", " + std::to_string(drawn.length) + " tokens in chunks of " + std::to_string(drawn.chunk) + ", the last " +
         std::to_string(drawn.generated) + " generated";
}

class DrawnShape : public ::testing::TestWithParam<std::tuple<DeviceKind, int>> {};

TEST_P(DrawnShape, AgreesWithNaiveForwardAtEveryPosition) {
  const DeviceKind& kind = std::get<0>(GetParam());
  const Case drawn = drawn_case(std::get<1>(GetParam()), kind);
  SCOPED_TRACE(described(drawn));
  drawn.config.validate();
  const Model model = random_model(drawn.config, 7);
  const std::vector<int> tokens = random_tokens(drawn.length, drawn.config.vocab_size, 11);

  ReaderOptions options;
  options.max_rows = drawn.chunk;
  options.context = drawn.length + 1;
  Reader reader(kind, model, options);
  const KvCache::Id sequence = reader.cache().create(options.context);
  const std::span<const int> all = tokens;
  Logits logits = reader.read(sequence, all.first(drawn.length - drawn.generated), drawn.chunk);
  append(logits, reader.read(sequence, all.last(drawn.generated), 1, RowKind::kGenerated));

  EXPECT_TRUE(is_close(kind, logits, naive_answer(kind, model, tokens).logits));
}

INSTANTIATE_TEST_SUITE_P(On, DrawnShape,
                         ::testing::Combine(::testing::ValuesIn(device_kinds()), ::testing::Range(0, kCases)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param).name + "_" +
                                  std::to_string(std::get<1>(param_info.param));
                         });

class DeviceForward : public DeviceTest {};
GEMMA_ON_ALL_DEVICES(DeviceForward);

TEST_P(DeviceForward, ReadsATextAcrossTheSpanOf512Keys) {
  const Model model = random_model(small_config(GetParam().width_multiple), 1);
  const std::vector<int> tokens = random_tokens(2 * kSpanPositions + 5, model.config.vocab_size, 2);
  const Logits logits = read_alone(GetParam(), model, tokens, 100);
  EXPECT_TRUE(is_close(GetParam(), logits, naive_answer(GetParam(), model, tokens).logits));
}

TEST_P(DeviceForward, CrossesEveryMultipleOfTheWindow) {
  for (int window : {1, 2, 7, 64, 65}) {
    Config config = small_config(GetParam().width_multiple);
    config.window = window;
    config.layers = {LayerKind::kLocal, LayerKind::kLocal};
    const Model model = random_model(config, 3);
    const std::vector<int> tokens = random_tokens(3 * std::max(window, 50) + 2, config.vocab_size, 4);
    const Logits logits = read_alone(GetParam(), model, tokens, 1);
    EXPECT_TRUE(is_close(GetParam(), logits, naive_answer(GetParam(), model, tokens).logits)) << "window " << window;
  }
}

TEST_P(DeviceForward, NarrowsTheWindowToThatOfTheCache) {
  Config config = small_config(GetParam().width_multiple);
  config.window = 90;
  Model model = random_model(config, 5);
  const std::vector<int> tokens = random_tokens(150, config.vocab_size, 6);
  ReaderOptions options;
  options.window = 11;
  Reader reader(GetParam(), model, options);
  const Logits logits = reader.read(reader.cache().create(150), tokens, 64);
  model.config.window = 11;
  EXPECT_TRUE(is_close(GetParam(), logits, naive_answer(GetParam(), model, tokens).logits));
}

TEST_P(DeviceForward, SoftCapsScoresFarBeyondTheCap) {
  Config config = small_config(GetParam().width_multiple);
  config.window = 40;
  config.query_pre_attn_scalar = 0.02;  // multiplies queries by 7
  const Model model = random_model(config, 7);
  const std::vector<int> tokens = random_tokens(120, config.vocab_size, 8);
  const naive::Answer answer = naive_answer(GetParam(), model, tokens);
  ASSERT_GT(answer.largest_score, 100) << "the scores do not reach the soft cap, so this test would show nothing";
  // A score of s carries an error of s * 2^-24 * sqrt(head_dim) into the exponent: some ten times that of ordinary
  // scores.
  const Logits logits = read_alone(GetParam(), model, tokens, 50);
  EXPECT_TRUE(is_close(GetParam(), logits, answer.logits, 10));
  EXPECT_LT(typical_difference(logits, answer.logits), GetParam().tolerance);
}

TEST_P(DeviceForward, SoftCapsLogitsWithTheExactTanh) {
  Config config = small_config(GetParam().width_multiple);
  config.final_softcap = 0.5f;  // most logits are near the cap, where an approximate tanh shows most
  const Model model = random_model(config, 9);
  Model uncapped = model;
  uncapped.config.final_softcap.reset();
  const std::vector<int> tokens = random_tokens(40, config.vocab_size, 10);
  for (const RowKind rows : {RowKind::kPrompt, RowKind::kGenerated}) {
    const auto read = [&](const Model& of) {
      Reader reader(GetParam(), of);
      return reader.read(reader.cache().create(40), tokens, rows == RowKind::kPrompt ? 40 : 1, rows);
    };
    const Logits logits = read(model);
    for (const std::vector<float>& row : logits) {
      for (float logit : row) ASSERT_LE(std::abs(logit), 0.5f);
    }
    EXPECT_TRUE(is_close(GetParam(), logits, naive_answer(GetParam(), model, tokens).logits));

    // All else is the same to the last bit, so what is left are float32's own errors.
    const Logits raw = read(uncapped);
    for (std::size_t row = 0; row < raw.size(); ++row) {
      for (std::size_t i = 0; i < raw[row].size(); ++i)
        ASSERT_NEAR(logits[row][i], 0.5 * std::tanh(raw[row][i] / 0.5), 3e-7) << "row " << row << ", logit " << i;
    }
  }
}

TEST_P(DeviceForward, ReadsAPromptAndGeneratedRowsOfManySequencesInOneStep) {
  Config config = small_config(GetParam().width_multiple);
  config.window = 20;
  const Model model = random_model(config, 12);
  ReaderOptions options;
  options.sequences = 5;
  options.context = 300;
  options.max_rows = 128;
  Reader reader(GetParam(), model, options);

  std::vector<std::vector<int>> texts;
  std::vector<Logits> logits(options.sequences);
  for (int i = 0; i < options.sequences; ++i) {
    texts.push_back(random_tokens(90 + 31 * i, config.vocab_size, 13 + static_cast<unsigned>(i)));
    ASSERT_EQ(reader.cache().create(options.context), i);
  }
  // Sequence i reads its first 10 + 17 * i tokens in chunks of 5 + 4 * i and generates the rest, all in common steps;
  // the order of the sequences in the batch turns.
  for (int turn = 0;; ++turn) {
    std::vector<Passage> passages;
    for (int k = 0; k < options.sequences; ++k) {
      const int i = (k + turn) % options.sequences;
      const int done = static_cast<int>(logits[i].size());
      const int prompt = 10 + 17 * i;
      const int count =
          done < prompt ? std::min(5 + 4 * i, prompt - done) : std::min(1, static_cast<int>(texts[i].size()) - done);
      if (count == 0) continue;
      const auto first = texts[i].begin() + done;
      passages.push_back({i, {first, first + count}, done < prompt ? RowKind::kPrompt : RowKind::kGenerated});
    }
    if (passages.empty()) break;
    const std::vector<Logits> answers = reader.step(passages);
    for (std::size_t p = 0; p < passages.size(); ++p) append(logits[passages[p].sequence], answers[p]);
  }
  for (int i = 0; i < options.sequences; ++i) {
    EXPECT_TRUE(is_close(GetParam(), logits[i], naive_answer(GetParam(), model, texts[i]).logits)) << "sequence " << i;
  }
}

}  // namespace
}  // namespace gemma
