// The demo model in bf16 against what Hugging Face transformers computes for it in float32, and the built-in one in q8.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "gemma/engine.h"
#include "golden/reference.h"
#include "support/reader.h"

namespace gemma {
namespace {

// The contract. Two runs of transformers itself (CPU and GPU, both float32) differ by up to 1.05e-5.
constexpr double kLogitTolerance = 1e-3;
constexpr double kNllTolerance = 1e-5;  // relative

Logits rows_of(const std::vector<float>& flat) {
  const auto vocab = demo_model_bf16().config.vocab_size;
  Logits rows;
  for (auto row = flat.begin(); row != flat.end(); row += vocab) rows.emplace_back(row, row + vocab);
  return rows;
}

naive::Vectors as_double(const Logits& rows) {
  naive::Vectors wide;
  for (const std::vector<float>& row : rows) wide.emplace_back(row.begin(), row.end());
  return wide;
}

EngineOptions engine_options(int chunk = 512, int threads = 0) {
  EngineOptions options;
  options.model = reference_path("demo-bf16.gemma");
  options.device = "cpu";
  options.context = 1024;
  options.chunk = chunk;
  options.threads = threads;
  return options;
}

class GoldenPrompt : public ::testing::TestWithParam<ReferencePrompt> {
 protected:
  static const nlohmann::json& expected() { return GetParam().expected(); }
  static const std::vector<int>& tokens() { return GetParam().tokens; }

  // The logits of every token, read in one chunk by a device with a float32 cache.
  Logits logits() const {
    return read_alone(device_kinds().front(), demo_model_bf16(), tokens(), static_cast<int>(tokens().size()), 2);
  }

  void report(const std::string& what, double error) {
    RecordProperty(what, std::to_string(error));
    std::cout << GetParam().name << ": " << what << " " << error << '\n';
  }
};

INSTANTIATE_TEST_SUITE_P(Of, GoldenPrompt, ::testing::ValuesIn(reference_prompts()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST_P(GoldenPrompt, HasTheLogitsOfTransformers) {
  const Logits found = logits();

  const std::string number = (GetParam().number < 10 ? "0" : "") + std::to_string(GetParam().number);
  const Logits last = rows_of(reference_tensor<float>("last_" + number + "_" + GetParam().name));
  const double last_error = largest_difference({found.back()}, as_double(last));
  report("largest error of a logit at the last position", last_error);
  EXPECT_LT(last_error, kLogitTolerance);

  if (GetParam().name == "story_40_tokens" || GetParam().name == "book_300_tokens") {
    const Logits full = rows_of(reference_tensor<float>("full_" + GetParam().name));
    const double full_error = largest_difference(found, as_double(full));
    report("largest error of a logit at any position", full_error);
    EXPECT_LT(full_error, kLogitTolerance);
  }

  std::vector<int> order(found.back().size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return found.back()[a] > found.back()[b]; });
  const auto& top = expected()["top20"];
  ASSERT_EQ(top.size(), 20u);
  for (std::size_t i = 0; i < top.size(); ++i) {
    const int token = top[i][0];
    EXPECT_NEAR(found.back()[token], top[i][1].get<double>(), kLogitTolerance);
    EXPECT_NEAR(found.back()[order[i]], top[i][1].get<double>(), kLogitTolerance) << "rank " << i;
  }

  double sum = 0;
  double squares = 0;
  for (float logit : found.back()) {
    sum += logit;
    squares += static_cast<double>(logit) * logit;
  }
  const double count = static_cast<double>(found.back().size());
  EXPECT_NEAR(sum / count, expected()["mean"].get<double>(), kLogitTolerance);
  EXPECT_NEAR(std::sqrt(squares / count - sum / count * sum / count), expected()["std"].get<double>(), kLogitTolerance);
  // The norm of an error of kLogitTolerance in every logit.
  EXPECT_NEAR(std::sqrt(squares), expected()["l2"].get<double>(), kLogitTolerance * std::sqrt(count));
}

TEST_P(GoldenPrompt, HasTheGreedyTokensOfTransformers) {
  static Engine engine(engine_options());
  Request request;
  request.tokens = tokens();
  request.options.max_tokens = 64;
  request.options.temperature = 0;
  request.options.ignore_eos = true;
  const Result result = engine.generate(request);
  EXPECT_EQ(result.tokens, GetParam().greedy) << result.text;
  EXPECT_EQ(result.prompt_tokens, static_cast<int>(tokens().size()));
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);
}

class GoldenText : public ::testing::TestWithParam<ReferencePrompt> {};

// The prompts that are known as text; the model wrote the others, and only their ids are certain.
std::vector<ReferencePrompt> texts() {
  std::vector<ReferencePrompt> all = reference_prompts();
  std::erase_if(all, [](const ReferencePrompt& prompt) { return prompt.expected()["text"].is_null(); });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Of, GoldenText, ::testing::ValuesIn(texts()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST_P(GoldenText, HasTheIdsOfTransformers) {
  const Tokenizer tokenizer(demo_model_bf16().tokenizer);
  const bool is_chat = GetParam().name.starts_with("chat_");
  std::vector<int> ids = tokenizer.encode(GetParam().expected()["text"].get<std::string>(),
                                          is_chat ? ControlTokens::kParse : ControlTokens::kAsText);
  ids.insert(ids.begin(), tokenizer.bos());
  EXPECT_EQ(ids, GetParam().tokens);
}

class GoldenScore : public ::testing::Test {
 protected:
  static std::vector<int> evaluation_ids() { return reference_tensor<int>("valid_ids"); }

  // What transformers says about as much of the text as is scored here.
  struct Expected {
    std::vector<nlohmann::json> windows;
    std::vector<int> ids;
    int predictions = 0;
    double nll = 0;
  };
  static Expected expected_score() {
    Expected expected;
    expected.windows = reference()["nll"]["windows"].get<std::vector<nlohmann::json>>();
    EXPECT_EQ(expected.windows.size(), 20u);
    expected.windows.resize(GEMMA_EVALUATION_WINDOWS);
    std::size_t count = 0;
    for (const nlohmann::json& window : expected.windows) {
      count += window["n"].get<std::size_t>();
      expected.predictions += window["predicted"].get<int>();
      expected.nll += window["nll_sum"].get<double>();
    }
    expected.ids = evaluation_ids();
    expected.ids.resize(count);
    return expected;
  }
};

TEST_F(GoldenScore, IsOfIdsThatDecodeToTheEvaluationText) {
  // Documents between <bos> and <eos>; in the text, an empty line stands between them. The model wrote them token by
  // token, not always as the tokenizer would have cut them, so the ids are not those of the text.
  const Tokenizer tokenizer(demo_model_bf16().tokenizer);
  std::vector<std::vector<int>> documents;
  for (int id : evaluation_ids()) {
    if (id == tokenizer.bos()) documents.emplace_back();
    if (!tokenizer.is_control(id)) documents.back().push_back(id);
  }
  std::string decoded;
  for (const std::vector<int>& document : documents)
    decoded += (decoded.empty() ? "" : "\n\n") + tokenizer.decode(document);
  EXPECT_GT(decoded.size(), 70'000u);
  EXPECT_EQ(decoded, reference_file("evaluation.txt").substr(0, decoded.size()));
}

TEST_F(GoldenScore, OfTheEvaluationTextIsThatOfTransformers) {
  const Expected expected = expected_score();
  const auto& [windows, ids, predictions, nll] = expected;
  const Score score = Engine(engine_options()).score(ids);
  ASSERT_EQ(score.tokens, static_cast<int>(ids.size()));
  ASSERT_EQ(score.predictions, predictions);
  ASSERT_EQ(score.logprobs.size(), static_cast<std::size_t>(predictions));

  const double error = std::abs(score.nll - nll) / nll;
  RecordProperty("relative_error", std::to_string(error));
  std::cout << "negative log-likelihood: " << score.nll << ", relative error " << error << '\n';
  EXPECT_LT(error, kNllTolerance);
  EXPECT_NEAR(score.perplexity, std::exp(nll / predictions), 1e-4);

  auto logprob = score.logprobs.begin();
  double sum = 0;
  for (const nlohmann::json& window : windows) {
    double of_window = 0;
    for (int i = 0; i < window["predicted"].get<int>(); ++i) of_window -= *logprob++;
    EXPECT_NEAR(of_window / window["nll_sum"].get<double>(), 1, kNllTolerance) << "window at " << window["start"];
    sum += of_window;
  }
  EXPECT_NEAR(score.nll, sum, 1e-9 * sum);
}

TEST_F(GoldenScore, OfTheBuiltInModelIsWithinATenthOfAPercentOfThatOfTransformers) {
  const Expected expected = expected_score();
  EngineOptions options = engine_options();
  options.model.clear();
  const Score score = Engine(options).score(expected.ids);
  ASSERT_EQ(score.predictions, expected.predictions);
  const double change = score.perplexity / std::exp(expected.nll / expected.predictions) - 1;
  std::cout << "perplexity of the built-in model: " << score.perplexity << ", changed by " << 100 * change << " %\n";
  EXPECT_LT(std::abs(change), 0.001);
}

TEST_F(GoldenScore, IsTheSameForEveryChunkSizeAndNumberOfThreads) {
  std::vector<int> ids = evaluation_ids();
  const auto expect_same = [&](std::initializer_list<int> chunks) {
    const std::vector<double> expected = Engine(engine_options(static_cast<int>(ids.size()), 1)).score(ids).logprobs;
    for (int chunk : chunks) {
      for (int threads : {1, 2, 3}) {
        EXPECT_EQ(Engine(engine_options(chunk, threads)).score(ids).logprobs, expected)
            << "chunk " << chunk << ", " << threads << " threads";
      }
    }
  };
  ids.resize(std::min(1100, 300 * GEMMA_EVALUATION_WINDOWS));  // one window of the context and the start of the next
  expect_same({64, 512});
  ids.resize(200);  // small chunks are slow, so only as far as the ring of 192 slots has wrapped
  expect_same({1, 7});
}

}  // namespace
}  // namespace gemma
