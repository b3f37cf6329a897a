#include "device/cpu/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "device/philox.h"

namespace gemma {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

int draw(std::vector<float> logits, const Sampling& sampling, int position = 0, const std::vector<int>& recent = {}) {
  return draw_token(logits, sampling, recent, position);
}

/// How often each token is drawn at so many positions.
std::map<int, int> draws(std::vector<float> logits, const Sampling& sampling, int count) {
  std::map<int, int> counts;
  for (int position = 0; position < count; ++position) ++counts[draw_token(logits, sampling, {}, position)];
  return counts;
}

/// The tokens that are drawn at all.
std::set<int> drawn(const std::vector<float>& logits, const Sampling& sampling) {
  std::set<int> tokens;
  for (const auto& [token, count] : draws(logits, sampling, 2000)) tokens.insert(token);
  return tokens;
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::vector<float> random_logits(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<std::size_t>(count));
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TEST(Philox, GivesThePublishedVectors) {
  // From the known-answer tests of the authors' Random123 library.
  using Words = std::array<std::uint32_t, 4>;
  const auto words = [](const PhiloxWords& counter, std::uint64_t key) {
    const PhiloxWords random = philox4x32(counter, key);
    return Words{random.x, random.y, random.z, random.w};
  };
  EXPECT_EQ(words({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff'ffffffff),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0'a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, DependsOnSeedAndPosition) {
  EXPECT_EQ(uniform_random(1, 2), uniform_random(1, 2));
  EXPECT_NE(uniform_random(1, 2), uniform_random(1, 3));
  EXPECT_NE(uniform_random(1, 2), uniform_random(std::uint64_t{1} << 40, 2));
  for (int i = 0; i < 1000; ++i) {
    EXPECT_GE(uniform_random(7, i), 0);
    EXPECT_LT(uniform_random(7, i), 1);
  }
}

TEST(Sample, TakesTheLargestLogitAndTheLowestIdAmongEqualsWhenGreedy) {
  EXPECT_EQ(draw({1, 3, 2, 3}, {.temperature = 0}), 1);
  EXPECT_EQ(draw({-5, -4}, {.temperature = 0}), 1);
}

TEST(Sample, CountsNanAsMinusInfinity) {
  for (float temperature : {0.0f, 1.0f}) {
    for (int top_k : {0, 2}) {
      EXPECT_EQ(draw({kNan, -3, kNan}, {.temperature = temperature, .top_k = top_k}), 1);
      EXPECT_EQ(draw({kNan, kNan}, {.temperature = temperature, .top_k = top_k}), 0);
      EXPECT_EQ(draw({-kInfinity, -kInfinity}, {.temperature = temperature, .top_k = top_k, .top_p = 0.5f}), 0);
      EXPECT_EQ(draw({0, kInfinity}, {.temperature = temperature, .top_k = top_k, .top_p = 0.5f}), 1);
    }
  }
}

TEST(Sample, DrawsFromTheSoftmaxOfLogitsOverTemperature) {
  const std::vector<float> logits = random_logits(20, 1);
  for (float temperature : {0.5f, 1.0f, 3.0f}) {
    for (int top_k : {0, 1000}) {
      std::vector<double> weights;
      for (float logit : logits) weights.push_back(std::exp(static_cast<double>(logit) / temperature));
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      constexpr int kDraws = 20000;
      const std::map<int, int> counts = draws(logits, {.temperature = temperature, .top_k = top_k, .seed = 5}, kDraws);
      double chi_square = 0;
      int cells = 0;
      double rare_expected = 0;
      double rare_counted = 0;
      for (int token = 0; token < 20; ++token) {
        const double expected = kDraws * weights[token] / sum;
        const double counted = counts.contains(token) ? counts.at(token) : 0;
        if (expected < 5) {
          rare_expected += expected;
          rare_counted += counted;
          continue;
        }
        chi_square += (counted - expected) * (counted - expected) / expected;
        ++cells;
      }
      // The mean of the statistic is cells - 1 and its deviation sqrt(2 (cells - 1)); the seed is fixed, so this holds
      // always or never.
      EXPECT_LT(chi_square, cells - 1 + 4 * std::sqrt(2.0 * (cells - 1))) << temperature;
      EXPECT_NEAR(rare_counted, rare_expected, 4 * std::sqrt(rare_expected) + 1);
    }
  }
}

TEST(Sample, SurvivesTemperaturesNearZeroAndFarAboveOne) {
  EXPECT_EQ(draw({1, 2, 1.9999f}, {.temperature = 1e-40f}), 1);
  EXPECT_EQ(drawn({1, 2, 3}, {.temperature = 1e30f}), (std::set<int>{0, 1, 2}));
}

TEST(Sample, KeepsTheTopKAndTheLowerIdsAmongEquals) {
  EXPECT_EQ(drawn({1, 2, 1, 2, 2, 0}, {.top_k = 2}), (std::set<int>{1, 3}));
  EXPECT_EQ(drawn({1, 2, 1, 2, 2, 0}, {.top_k = 4}), (std::set<int>{0, 1, 3, 4}));
  EXPECT_EQ(drawn({1, 2, 1}, {.top_k = 1}), (std::set<int>{1}));
}

TEST(Sample, FindsTheSameTopKAsAFullSort) {
  for (int vocab : {3, 300, 5000}) {
    std::vector<float> logits = random_logits(vocab, 2);
    for (float& logit : logits) logit = std::round(logit);  // many equals
    std::vector<int> order(static_cast<std::size_t>(vocab));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    for (int count : {1, 2, 100, 2000, 100000}) {
      const std::vector<TokenLogprob> top = top_logprobs(logits, 0, count);
      ASSERT_EQ(top.size(), static_cast<std::size_t>(std::min(count, vocab)));
      for (std::size_t i = 0; i < top.size(); ++i) {
        ASSERT_EQ(top[i].token, order[i]);
        ASSERT_EQ(top[i].logprob, logits[order[i]]);
      }
    }
  }
}

TEST(Sample, KeepsTheSmallestSetThatReachesTopP) {
  const std::vector<float> logits = logits_of({0.1, 0.4, 0.2, 0.3});
  EXPECT_EQ(drawn(logits, {.top_p = 0.39f}), (std::set<int>{1}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.41f}), (std::set<int>{1, 3}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.69f}), (std::set<int>{1, 3}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.71f}), (std::set<int>{1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.top_p = 1e-9f}), (std::set<int>{1}));
  // Among the top 2 the probabilities are 4/7 and 3/7.
  EXPECT_EQ(drawn(logits, {.top_k = 2, .top_p = 0.56f}), (std::set<int>{1}));
  EXPECT_EQ(drawn(logits, {.top_k = 2, .top_p = 0.58f}), (std::set<int>{1, 3}));
}

TEST(Sample, AppliesTemperatureBeforeTopP) {
  // At temperature 0.5 the probabilities are as their squares: 9/14, 4/14, 1/14.
  const std::vector<float> logits = logits_of({3 / 6.0, 2 / 6.0, 1 / 6.0});
  EXPECT_EQ(drawn(logits, {.temperature = 0.5f, .top_p = 0.63f}), (std::set<int>{0}));
  EXPECT_EQ(drawn(logits, {.temperature = 1.0f, .top_p = 0.63f}), (std::set<int>{0, 1}));
}

TEST(Sample, DropsWhatIsLessLikelyThanMinPTimesTheLikeliest) {
  const std::vector<float> logits = logits_of({0.1, 0.4, 0.2, 0.3});
  EXPECT_EQ(drawn(logits, {.min_p = 0.24f}), (std::set<int>{0, 1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.min_p = 0.26f}), (std::set<int>{1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.min_p = 0.76f}), (std::set<int>{1}));
  EXPECT_EQ(drawn(logits, {.min_p = 1.0f}), (std::set<int>{1}));
  EXPECT_EQ(drawn({2, 2, 1}, {.min_p = 1.0f}), (std::set<int>{0, 1}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.71f, .min_p = 0.74f}), (std::set<int>{1, 3}));
}

TEST(Sample, PenalisesEachRecentTokenOnceAndRestoresTheLogits) {
  std::vector<float> logits = {4, 3.9f, -1};
  const std::vector<float> before = logits;
  const std::vector<int> recent = {0, 0, 0, 99, -1};
  // 4 / 1.02 is above 3.9; were the penalty applied three times, it would not be.
  EXPECT_EQ(draw_token(logits, {.temperature = 0, .repeat_penalty = 1.02f}, recent, 0), 0);
  EXPECT_EQ(draw_token(logits, {.temperature = 0, .repeat_penalty = 1.1f}, recent, 0), 1);
  EXPECT_EQ(logits, before);
  const std::vector<int> negative = {0};
  std::vector<float> losses = {-1, -1.5f};
  EXPECT_EQ(draw_token(losses, {.temperature = 0, .repeat_penalty = 2.0f}, negative, 0), 1);
}

TEST(Sample, DrawsTheSameTokenForTheSameSeedAndPosition) {
  const std::vector<float> logits = random_logits(5000, 3);
  const Sampling sampling{.temperature = 2, .top_p = 0.9f, .seed = 9};
  std::set<int> tokens;
  for (int position = 0; position < 20; ++position) {
    EXPECT_EQ(draw(logits, sampling, position), draw(logits, sampling, position));
    tokens.insert(draw(logits, sampling, position));
  }
  EXPECT_GT(tokens.size(), 10u);
}

TEST(Sample, AnswersWithLogprobsOfTheModelsOwnDistribution) {
  std::vector<float> logits = logits_of({0.1, 0.4, 0.2, 0.3});
  for (float& logit : logits) logit += 5;  // log-probabilities do not depend on a shift
  const std::vector<int> recent = {1};
  std::vector<float> copy(4);
  OutputRow wanted;
  wanted.sampling = Sampling{.temperature = 0, .repeat_penalty = 100};
  wanted.recent = recent;
  wanted.top_logprobs = 3;
  wanted.logits = copy;
  Output output = answer(wanted, logits, 0);
  EXPECT_EQ(output.token, 3);
  EXPECT_NEAR(output.logprob, std::log(0.3), 1e-6);
  ASSERT_EQ(output.top.size(), 3u);
  EXPECT_EQ(output.top[0].token, 1);
  EXPECT_NEAR(output.top[0].logprob, std::log(0.4), 1e-6);
  EXPECT_EQ(output.top[2].token, 2);
  EXPECT_EQ(copy, logits);

  wanted.target = 0;
  output = answer(wanted, logits, 0);
  EXPECT_NEAR(output.logprob, std::log(0.1), 1e-6);
  EXPECT_EQ(output.token, 3);
}

TEST(Sample, SpreadsAVocabularyOfEqualLogitsEvenly) {
  const std::vector<float> logits(50000, 1.0f);
  double sum = 0;
  for (int position = 0; position < 300; ++position) sum += draw(logits, {.seed = 4}, position);
  // The mean of a uniform draw, with a deviation of 50000 / sqrt(12 * 300).
  EXPECT_NEAR(sum / 300, 25000, 4 * 50000 / std::sqrt(12.0 * 300));
}

}  // namespace
}  // namespace gemma
