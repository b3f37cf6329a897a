// The GPU sampler against the rules of device/cpu/sample.h, followed step by step in double precision on sorted
// candidates.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda_error.h"
#include "device/philox.h"
#include "sample.cuh"

namespace gemma {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Known answers of the authors' library, Random123.
constexpr PhiloxWords kOfZeros = philox4x32({0, 0, 0, 0}, 0);
static_assert(kOfZeros.x == 0x6627e8d5u && kOfZeros.y == 0xe169c58du && kOfZeros.z == 0xbc57ac4cu &&
              kOfZeros.w == 0x9b00dbd8u);
constexpr PhiloxWords kOfPi = philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0x299f31d0a4093822u);
static_assert(kOfPi.x == 0xd16cfe09u && kOfPi.y == 0x94fdccebu && kOfPi.z == 0x5001e420u && kOfPi.w == 0x24126ea1u);

/// An owned array in device memory.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<std::size_t>(size, 1) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { write(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void write(const std::vector<T>& values) {
    check_cuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    check_cuda(cudaDeviceSynchronize());  // the copy may still be on its way, and the tests' streams do not wait for it
  }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    check_cuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// --- the reference ---

struct Candidate {
  double logit;
  int token;
};

float usable(float logit) {
  return std::isnan(logit) ? -kInfinity : std::min(logit, std::numeric_limits<float>::max());
}

std::vector<Candidate> in_order(const std::vector<float>& logits) {
  std::vector<Candidate> candidates(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) candidates[i] = {usable(logits[i]), static_cast<int>(i)};
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  });
  return candidates;
}

double log_sum_exp(const std::vector<Candidate>& ordered) {
  if (ordered[0].logit == -kInfinity) return -kInfinity;
  double sum = 0;
  for (const Candidate& candidate : ordered) sum += std::exp(candidate.logit - ordered[0].logit);
  return ordered[0].logit + std::log(sum);
}

double logprob(const std::vector<float>& logits, double normaliser, int token) {
  const double logit = usable(logits[static_cast<std::size_t>(token)]);
  return std::isinf(logit) ? logit : logit - normaliser;
}

std::vector<float> penalised(std::vector<float> logits, float penalty, const std::vector<int>& recent) {
  if (penalty == 1) return logits;
  for (const int token : std::set<int>(recent.begin(), recent.end())) {
    if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) continue;
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  return logits;
}

/// The tokens that may be drawn: one, or more where a sum lies so close to a border that rounding decides. The GPU
/// holds probabilities as multiples of 2^-45 of the largest, which is 3e-14; errors of 1000 tokens may add up.
std::set<int> drawable(const std::vector<float>& raw, const Sampling& sampling, const std::vector<int>& recent,
                       int position) {
  const std::vector<float> logits = penalised(raw, sampling.repeat_penalty, recent);
  if (sampling.temperature == 0) {
    int best = 0;
    float largest = -kInfinity;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] > largest) {
        largest = logits[i];
        best = static_cast<int>(i);
      }
    }
    return {best};
  }
  std::vector<Candidate> ordered = in_order(logits);
  if (sampling.top_k > 0) ordered.resize(std::min(ordered.size(), static_cast<std::size_t>(sampling.top_k)));
  if (ordered[0].logit == -kInfinity) return {0};
  std::vector<double> weight(ordered.size());
  for (std::size_t i = 0; i < ordered.size(); ++i)
    weight[i] = std::exp((ordered[i].logit - ordered[0].logit) / sampling.temperature);
  std::vector<double> sum(ordered.size());
  std::partial_sum(weight.begin(), weight.end(), sum.begin());
  const double all = sum.back();

  constexpr double kTolerance = 1e-9;
  std::set<int> tokens;
  for (const double error : {-kTolerance, 0.0, kTolerance}) {
    std::size_t within_top_p = ordered.size();
    if (sampling.top_p < 1) {
      within_top_p = static_cast<std::size_t>(std::lower_bound(sum.begin(), sum.end(), (sampling.top_p + error) * all) -
                                              sum.begin()) +
                     1;
    }
    for (const double min_p_error : {-1e-14, 0.0, 1e-14}) {
      std::size_t kept = std::min(within_top_p, ordered.size());
      while (kept > 1 && weight[kept - 1] < sampling.min_p * (1 + min_p_error)) --kept;
      for (const double draw_error : {-kTolerance, 0.0, kTolerance}) {
        const double goal = (uniform_random(sampling.seed, position) + draw_error) * sum[kept - 1];
        const auto chosen = static_cast<std::size_t>(
            std::upper_bound(sum.begin(), sum.begin() + static_cast<long>(kept), goal) - sum.begin());
        tokens.insert(ordered[std::min(chosen, kept - 1)].token);
      }
    }
  }
  return tokens;
}

// --- running the GPU ---

/// One row of a test.
struct Case {
  std::string name;
  std::vector<float> logits;
  SampleRow row;
  std::vector<int> recent = {};
  int position = 0;
};

struct Answer {
  SampleOutput output;
  std::vector<TokenLogprob> top;
};

RecentTokens recent_tokens(const std::vector<int>& tokens) {
  RecentTokens recent{};
  std::fill(std::begin(recent.tokens), std::end(recent.tokens), -1);
  std::copy(tokens.begin(), tokens.end(), recent.tokens);
  recent.count = static_cast<int>(tokens.size());
  return recent;
}

/// Runs all cases, which have one vocabulary, in steps of `max_rows` rows; the last step may have fewer. Step rows,
/// batch rows and rows of logits are in different orders, and rows of logits `padding` floats further apart than they
/// are long.
/// @param grows  launches for one row first, then for two, four and so on
std::vector<Answer> run(const std::vector<Case>& cases, int max_rows, int padding = 0, bool grows = false) {
  const int vocab = static_cast<int>(cases[0].logits.size());
  const auto pitch = static_cast<std::size_t>(vocab + padding);
  const auto rows = static_cast<std::size_t>(max_rows);
  int top_pitch = 1;
  for (const Case& one : cases) top_pitch = std::max(top_pitch, one.row.top_logprobs);

  DeviceArray<char> workspace(sample_workspace_bytes(max_rows, vocab));
  check_cuda(cudaMemset(workspace.data(), 0, sample_workspace_bytes(max_rows, vocab)));
  const TokenLogprob poison{-77, kNan};
  std::vector<Answer> answers;
  std::size_t count = 0;
  for (std::size_t begin = 0; begin < cases.size(); begin += count) {
    count = std::min(grows ? std::min(rows, std::max<std::size_t>(1, 2 * count)) : rows, cases.size() - begin);
    std::vector<float> logits(rows * pitch, kNan);
    std::vector<SampleRow> sample_rows(rows);
    std::vector<RecentTokens> recent(rows);
    std::vector<int> position(rows, -1);
    for (std::size_t i = 0; i < count; ++i) {
      const Case& one = cases[begin + i];
      const std::size_t logits_row = count - 1 - i;
      const std::size_t batch_row = (i + 1) % count;
      std::copy(one.logits.begin(), one.logits.end(), logits.begin() + static_cast<long>(logits_row * pitch));
      sample_rows[i] = one.row;
      sample_rows[i].logits_row = static_cast<int>(logits_row);
      sample_rows[i].batch_row = static_cast<int>(batch_row);
      recent[i] = recent_tokens(one.recent);
      position[batch_row] = one.position;
    }
    DeviceArray<float> device_logits(logits);
    DeviceArray<SampleRow> device_rows(sample_rows);
    DeviceArray<RecentTokens> device_recent(recent);
    DeviceArray<int> device_position(position);
    DeviceArray<int> device_token(std::vector<int>(rows, -5));
    DeviceArray<int> row_count(std::vector<int>{static_cast<int>(count)});
    DeviceArray<SampleOutput> outputs(std::vector<SampleOutput>(rows, SampleOutput{kNan, -77}));
    DeviceArray<TokenLogprob> top(std::vector<TokenLogprob>(rows * static_cast<std::size_t>(top_pitch), poison));
    launch_sample({.logits = device_logits.data(),
                   .pitch = pitch,
                   .vocab = vocab,
                   .row_count = row_count.data(),
                   .rows = device_rows.data(),
                   .recent = device_recent.data(),
                   .token = device_token.data(),
                   .position = device_position.data(),
                   .outputs = outputs.data(),
                   .top = top.data(),
                   .top_pitch = top_pitch,
                   .workspace = workspace.data(),
                   .workspace_rows = max_rows},
                  grows ? static_cast<int>(count) : max_rows, nullptr);
    check_cuda(cudaDeviceSynchronize());

    const std::vector<SampleOutput> output_values = outputs.read();
    const std::vector<TokenLogprob> top_values = top.read();
    for (std::size_t i = 0; i < rows; ++i) {
      const auto wanted = i < count ? static_cast<std::size_t>(std::min(cases[begin + i].row.top_logprobs, vocab)) : 0;
      const auto first = top_values.begin() + static_cast<long>(i * static_cast<std::size_t>(top_pitch));
      for (auto at = first + static_cast<long>(wanted); at != first + top_pitch; ++at) {
        EXPECT_EQ(at->token, poison.token) << "row " << i << " wrote more likeliest tokens than it was asked for";
      }
      if (i < count) {
        answers.push_back({output_values[i], {first, first + static_cast<long>(wanted)}});
      } else {
        EXPECT_EQ(output_values[i].token, -77) << "row " << i << " is beyond the row count and was written";
      }
    }
    EXPECT_EQ(device_token.read(), std::vector<int>(rows, -5)) << "no row advances";
    EXPECT_EQ(device_position.read(), position) << "no row advances";
  }
  return answers;
}

/// Differences and exponentials of float32: 1e-7 relative for logits up to 100, more for larger ones.
constexpr double kLogprobTolerance = 1e-5;

void expect_logprob(double actual, double expected, const std::string& what) {
  if (std::isinf(expected)) {
    EXPECT_EQ(actual, expected) << what;
  } else {
    EXPECT_NEAR(actual, expected, kLogprobTolerance * std::max(1.0, std::abs(expected) / 100)) << what;
  }
}

void expect_right(const std::vector<Case>& cases, const std::vector<Answer>& answers) {
  ASSERT_EQ(cases.size(), answers.size());
  int ambiguous = 0;
  std::vector<Candidate> ordered;
  double normaliser = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& one = cases[i];
    const Answer& answer = answers[i];
    const Sampling& sampling = one.row.sampling;
    const int vocab = static_cast<int>(one.logits.size());
    const std::string what =
        one.name + ", vocabulary " + std::to_string(vocab) + ", temperature " + std::to_string(sampling.temperature) +
        ", top_k " + std::to_string(sampling.top_k) + ", top_p " + std::to_string(sampling.top_p) + ", min_p " +
        std::to_string(sampling.min_p) + ", penalty " + std::to_string(sampling.repeat_penalty) + ", seed " +
        std::to_string(sampling.seed) + ", position " + std::to_string(one.position) + ", row " + std::to_string(i);
    if (one.row.is_drawn != 0) {
      const std::set<int> right = drawable(one.logits, sampling, one.recent, one.position);
      ambiguous += right.size() > 1 ? 1 : 0;
      EXPECT_TRUE(right.contains(answer.output.token))
          << what << ": drew " << answer.output.token << ", right is " << *right.begin();
    } else {
      EXPECT_EQ(answer.output.token, -1) << what;
    }
    if (i == 0 || std::memcmp(one.logits.data(), cases[i - 1].logits.data(), one.logits.size() * sizeof(float)) != 0) {
      ordered = in_order(one.logits);
      normaliser = log_sum_exp(ordered);
    }
    const int asked = one.row.target >= 0 ? one.row.target : answer.output.token;
    ASSERT_LT(asked, vocab) << what;
    expect_logprob(answer.output.logprob, asked >= 0 ? logprob(one.logits, normaliser, asked) : 0,
                   what + ", log-probability");
    for (std::size_t k = 0; k < answer.top.size(); ++k) {
      const int token = ordered[k].token;
      ASSERT_EQ(answer.top[k].token, token) << what << ", likeliest token " << k;
      expect_logprob(answer.top[k].logprob, logprob(one.logits, normaliser, token),
                     what + ", likeliest token " + std::to_string(k));
    }
  }
  EXPECT_LE(ambiguous, 2 + static_cast<int>(cases.size()) / 10)
      << "too many draws near a border to tell right from wrong";
}

// --- what to run ---

std::vector<Sampling> samplings(int vocab) {
  std::vector<Sampling> all = {
      {.temperature = 0},
      {.temperature = 0, .repeat_penalty = 1.3f},
      {},
      {.temperature = 0.1f},
      {.temperature = 5},
      {.top_k = 64, .top_p = 0.95f},
      {.temperature = 0.7f, .top_k = 64, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.1f},
      {.top_k = 1},
      {.temperature = 3, .top_k = 256},
      {.temperature = 3, .top_k = 257},
      {.temperature = 3, .top_k = 900, .top_p = 0.9f},
      {.temperature = 4, .top_k = std::max(1, vocab - 1)},
      {.temperature = 4, .top_k = std::max(1, vocab / 2), .top_p = 0.8f, .min_p = 1e-3f},
      {.top_k = vocab},
      {.top_p = 0.9f},
      {.temperature = 2, .top_p = 0.5f, .repeat_penalty = 0.8f},
      {.top_p = 1e-6f},
      {.temperature = 3, .top_p = 0.999999f},
      {.min_p = 0.1f},
      {.min_p = 1},
      {.temperature = 3, .min_p = 1e-6f, .repeat_penalty = 1.5f},
      {.temperature = 1.5f, .top_p = 0.7f, .min_p = 0.3f},
      {.temperature = 100},
  };
  for (std::size_t i = 0; i < all.size(); ++i) all[i].seed = 0x123456789abcdefu * (i + 1);
  return all;
}

/// Every kind of sampling on the logits that `make` makes.
template <class Make>
std::vector<Case> all_samplings(const std::string& name, int vocab, std::mt19937& random, const Make& make) {
  std::vector<float> logits(static_cast<std::size_t>(vocab));
  for (float& logit : logits) logit = make();
  const std::vector<Candidate> ordered = in_order(logits);
  std::vector<Case> cases;
  for (const Sampling& sampling : samplings(vocab)) {
    Case one{name, logits, {}, {}, static_cast<int>(random() % 8192)};
    one.row.sampling = sampling;
    one.row.is_drawn = 1;
    // The likeliest tokens, some twice, and some that do not exist.
    for (std::size_t i = 0; i < std::min<std::size_t>(ordered.size(), 30); ++i) one.recent.push_back(ordered[i].token);
    for (int i = 0; i < 30; ++i) one.recent.push_back(static_cast<int>(random() % static_cast<unsigned>(vocab + 3)));
    one.recent.push_back(one.recent[0]);
    one.recent.push_back(-1);
    constexpr std::array kTop = {0, 1, 5, 20, 300, kMaxTopLogprobs};
    one.row.top_logprobs = kTop[random() % kTop.size()];
    one.row.target = random() % 2 == 0 ? -1 : static_cast<int>(random() % static_cast<unsigned>(vocab));
    cases.push_back(one);
  }
  return cases;
}

class SampleOfVocabulary : public testing::TestWithParam<int> {
 protected:
  template <class Make>
  void check(const std::string& name, const Make& make) {
    const std::vector<Case> cases = all_samplings(name, GetParam(), random_, make);
    expect_right(cases, run(cases, GetParam() > 10000 ? 8 : 16, GetParam() % 3));
  }

  std::mt19937 random_{20240627};
};

INSTANTIATE_TEST_SUITE_P(Sizes, SampleOfVocabulary, testing::Values(1, 7, 255, 257, 1000, 4096, 256000));

TEST_P(SampleOfVocabulary, DrawsAsTheRulesSayFromNormalLogits) {
  std::normal_distribution<float> normal(0, 3);
  check("normal", [&] { return normal(random_); });
}

TEST_P(SampleOfVocabulary, DrawsAsTheRulesSayFromAlmostEqualLogits) {
  std::normal_distribution<float> normal(2, 0.01f);
  check("almost equal", [&] { return normal(random_); });
}

TEST_P(SampleOfVocabulary, TakesTheLowerIdFirstAmongEquals) {
  check("whole numbers and both zeros",
        [&] { return std::copysign(static_cast<float>(random_() % 4), random_() % 2 == 0 ? 1.0f : -1.0f); });
  check("all equal", [] { return -1.5f; });
}

TEST_P(SampleOfVocabulary, TakesNanAsMinusInfinityAndInfinityAsTheLargestNumber) {
  std::normal_distribution<float> normal(0, 3);
  check("with NaN and -inf", [&] {
    return random_() % 3 == 0 ? kNan : random_() % 3 == 0 ? -kInfinity : normal(random_);
  });
  check("all NaN", [] { return kNan; });
  check("all -inf", [] { return -kInfinity; });
  check("with infinity", [&] { return random_() % 5 == 0 ? kInfinity : normal(random_); });
}

TEST_P(SampleOfVocabulary, DrawsAsTheRulesSayFromLogitsWithoutSoftCap) {
  std::normal_distribution<float> normal(0, 1);
  check("wide", [&] { return 300 * normal(random_); });
  check("enormous", [&] { return std::copysign(std::exp(80 * std::abs(normal(random_)) / 4), normal(random_)); });
  // Few likely tokens, the rest beyond where bins end.
  check("few far ahead", [&] { return random_() % 997 == 0 ? 60.0f : -10 + 0.2f * normal(random_); });
}

TEST(Sample, GivesAScoredRowItsTargetsLogProbabilityAndDrawsNothing) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 4);
  std::vector<Case> cases;
  for (int i = 0; i < 70; ++i) {
    Case one{"scored", std::vector<float>(2049), {}, {}, 0};
    for (float& logit : one.logits) logit = normal(random);
    one.row.target = i == 69 ? -1 : i * 29;
    cases.push_back(one);
  }
  expect_right(cases, run(cases, 32));
}

TEST(Sample, GivesTheSameBitsWhateverTheOtherRowsAre) {
  for (const int vocab : {1000, 256000}) {
    std::mt19937 random(99);
    std::normal_distribution<float> normal(0, 2);
    std::vector<Case> cases = all_samplings("together", vocab, random, [&] { return normal(random); });
    const int all = static_cast<int>(cases.size());
    const std::vector<Answer> together = run(cases, all);
    // Alone, and in steps of ever more rows, which must find the work space as no step of fewer rows has left it.
    for (const std::vector<Answer>& otherwise : {run(cases, 1, 1), run(cases, all, 0, /*grows=*/true)}) {
      ASSERT_EQ(otherwise.size(), cases.size());
      for (std::size_t i = 0; i < cases.size(); ++i) {
        EXPECT_EQ(together[i].output.token, otherwise[i].output.token) << "row " << i;
        EXPECT_EQ(together[i].output.logprob, otherwise[i].output.logprob) << "row " << i;
        ASSERT_EQ(together[i].top.size(), otherwise[i].top.size());
        for (std::size_t k = 0; k < together[i].top.size(); ++k) {
          EXPECT_EQ(together[i].top[k].token, otherwise[i].top[k].token) << "row " << i << ", likeliest token " << k;
          EXPECT_EQ(together[i].top[k].logprob, otherwise[i].top[k].logprob)
              << "row " << i << ", likeliest token " << k;
        }
      }
    }
  }
}

/// Draws `draws` times and compares how often each token came with its probability.
void expect_frequencies(int vocab, int draws, const Sampling& sampling) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 1);
  Case one{"frequencies", std::vector<float>(static_cast<std::size_t>(vocab)), {}, {}, 0};
  for (float& logit : one.logits) logit = normal(random);
  one.row.sampling = sampling;
  one.row.is_drawn = 1;
  std::vector<Case> cases(static_cast<std::size_t>(draws), one);
  for (int i = 0; i < draws; ++i) {
    cases[static_cast<std::size_t>(i)].row.sampling.seed = static_cast<std::uint64_t>(i / 64);
    cases[static_cast<std::size_t>(i)].position = i % 64;
  }
  std::vector<int> seen(static_cast<std::size_t>(vocab));
  for (const Answer& answer : run(cases, 256)) ++seen.at(static_cast<std::size_t>(answer.output.token));

  std::vector<Candidate> ordered = in_order(one.logits);
  if (sampling.top_k > 0) ordered.resize(static_cast<std::size_t>(sampling.top_k));
  const double normaliser = log_sum_exp(ordered);
  double chi_square = 0;
  int drawn = 0;
  for (const Candidate& candidate : ordered) {
    const double expected = draws * std::exp(candidate.logit - normaliser);
    const int count = seen[static_cast<std::size_t>(candidate.token)];
    chi_square += (count - expected) * (count - expected) / expected;
    drawn += count;
  }
  EXPECT_EQ(drawn, draws) << "tokens beyond top_k were drawn";
  const double freedom = static_cast<double>(ordered.size()) - 1;
  EXPECT_NEAR(chi_square, freedom, 5 * std::sqrt(2 * freedom));  // five standard deviations
}

TEST(Sample, DrawsTokensAsOftenAsTheirProbabilitiesSay) {
  expect_frequencies(20, 8192, {});
  expect_frequencies(300, 16384, {});
  expect_frequencies(1000, 8192, {.top_k = 40});
}

TEST(Sample, AdvancesRowsOnTheDeviceFromStepToStepOfOneCapturedGraph) {
  constexpr int kVocab = 3000;
  constexpr int kRows = 4;
  constexpr int kSteps = 150;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(kRows * kVocab);
  for (float& logit : logits) logit = normal(random);
  std::vector<SampleRow> rows(kRows);
  rows[0].sampling = {.temperature = 0, .repeat_penalty = 1.2f};
  rows[1].sampling = {.temperature = 1, .top_k = 50, .top_p = 0.9f, .repeat_penalty = 1.4f, .seed = 4};
  rows[2].sampling = {.temperature = 2, .repeat_penalty = 1.4f, .seed = 9};
  rows[3].sampling = {.temperature = 2, .repeat_penalty = 1.4f, .seed = 9};
  std::vector<std::vector<int>> history = {{1, 2, 3}, {}, std::vector<int>(kRepeatWindow - 1, 5), {8}};
  std::vector<RecentTokens> recent;
  std::vector<int> position = {10, 20, 30, 40};
  for (int i = 0; i < kRows; ++i) {
    rows[static_cast<std::size_t>(i)].logits_row = i;
    rows[static_cast<std::size_t>(i)].batch_row = kRows - 1 - i;
    rows[static_cast<std::size_t>(i)].is_drawn = 1;
    rows[static_cast<std::size_t>(i)].advances = i < 3 ? 1 : 0;
    recent.push_back(recent_tokens(history[static_cast<std::size_t>(i)]));
  }
  DeviceArray<float> device_logits(logits);
  DeviceArray<SampleRow> device_rows(rows);
  DeviceArray<RecentTokens> device_recent(recent);
  DeviceArray<int> device_position(position);
  DeviceArray<int> device_token(std::vector<int>(kRows, -5));
  DeviceArray<int> row_count(std::vector<int>{kRows});
  DeviceArray<SampleOutput> outputs(kRows);
  const std::size_t bytes = sample_workspace_bytes(8, kVocab);
  DeviceArray<char> workspace(std::vector<char>(bytes, 0));

  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  launch_sample({.logits = device_logits.data(),
                 .pitch = kVocab,
                 .vocab = kVocab,
                 .row_count = row_count.data(),
                 .rows = device_rows.data(),
                 .recent = device_recent.data(),
                 .token = device_token.data(),
                 .position = device_position.data(),
                 .outputs = outputs.data(),
                 .top = nullptr,
                 .top_pitch = 0,
                 .workspace = workspace.data(),
                 .workspace_rows = 8},
                8, stream);
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaGraphInstantiate(&executable, graph, 0));

  for (int step = 0; step < kSteps; ++step) {
    check_cuda(cudaGraphLaunch(executable, stream));
    check_cuda(cudaStreamSynchronize(stream));
    const std::vector<SampleOutput> drawn = outputs.read();
    const std::vector<int> token = device_token.read();
    const std::vector<int> new_position = device_position.read();
    for (int i = 0; i < kRows; ++i) {
      const auto row = static_cast<std::size_t>(i);
      const auto batch_row = static_cast<std::size_t>(rows[row].batch_row);
      std::vector<int>& past = history[row];
      const std::vector<int> newest(past.end() - std::min<long>(static_cast<long>(past.size()), kRepeatWindow),
                                    past.end());
      const std::vector<float> row_logits(logits.begin() + i * kVocab, logits.begin() + (i + 1) * kVocab);
      const std::set<int> right = drawable(row_logits, rows[row].sampling, newest, position[batch_row]);
      ASSERT_TRUE(right.contains(drawn[row].token))
          << "step " << step << ", row " << i << ": drew " << drawn[row].token << ", right is " << *right.begin();
      if (rows[row].advances != 0) {
        past.push_back(drawn[row].token);
        ++position[batch_row];
      }
      ASSERT_EQ(token[batch_row], rows[row].advances != 0 ? drawn[row].token : -5) << "step " << step << ", row " << i;
      ASSERT_EQ(new_position[batch_row], position[batch_row]) << "step " << step << ", row " << i;
    }
  }
  check_cuda(cudaGraphExecDestroy(executable));
  check_cuda(cudaGraphDestroy(graph));
  check_cuda(cudaStreamDestroy(stream));
}

/// Not a check: run with --gtest_also_run_disabled_tests. A step must read 1.02 MB of logits a row, from the L2 cache.
TEST(Sample, DISABLED_PrintsMicroseconds) {
  constexpr int kVocab = 256000;
  constexpr int kStepsInGraph = 50;
  constexpr int kReplays = 20;
  struct Kind {
    const char* name;
    Sampling sampling;
    float sigma;
    int top_logprobs = 0;
  };
  const std::vector<Kind> kinds = {
      {"greedy", {.temperature = 0}, 3},
      {"greedy, 20 likeliest", {.temperature = 0}, 3, 20},
      {"top_k 64, top_p 0.95", {.top_k = 64, .top_p = 0.95f}, 3},
      {"top_k 64, top_p 0.95, penalty", {.top_k = 64, .top_p = 0.95f, .repeat_penalty = 1.1f}, 3},
      {"top_k 256", {.top_k = 256}, 3},
      {"top_k 0", {}, 3},
      {"top_k 0, top_p 0.95", {.top_p = 0.95f}, 3},
      {"top_k 0, min_p 0.05", {.min_p = 0.05f}, 3},
      {"top_k 1000, top_p 0.95", {.top_k = 1000, .top_p = 0.95f}, 3},
      {"top_k 0, top_p 0.95, almost equal", {.top_p = 0.95f}, 0.01f},
  };
  for (const int max_rows : {1, 8}) {
    for (const Kind& kind : kinds) {
      std::mt19937 random(1);
      std::normal_distribution<float> normal(0, kind.sigma);
      std::vector<float> logits(static_cast<std::size_t>(max_rows) * kVocab);
      for (float& logit : logits) logit = normal(random);
      std::vector<SampleRow> rows(static_cast<std::size_t>(max_rows));
      for (int i = 0; i < max_rows; ++i) {
        rows[static_cast<std::size_t>(i)].sampling = kind.sampling;
        rows[static_cast<std::size_t>(i)].logits_row = i;
        rows[static_cast<std::size_t>(i)].batch_row = i;
        rows[static_cast<std::size_t>(i)].top_logprobs = kind.top_logprobs;
        rows[static_cast<std::size_t>(i)].is_drawn = 1;
        rows[static_cast<std::size_t>(i)].advances = 1;
      }
      DeviceArray<float> device_logits(logits);
      DeviceArray<SampleRow> device_rows(rows);
      DeviceArray<RecentTokens> recent(std::vector<RecentTokens>(rows.size(), recent_tokens({1, 2, 3})));
      DeviceArray<int> position(std::vector<int>(rows.size(), 0));
      DeviceArray<int> token(rows.size());
      DeviceArray<int> row_count(std::vector<int>{max_rows});
      DeviceArray<SampleOutput> outputs(rows.size());
      DeviceArray<TokenLogprob> top(rows.size() * 20);
      DeviceArray<char> workspace(std::vector<char>(sample_workspace_bytes(max_rows, kVocab), 0));
      cudaStream_t stream = nullptr;
      check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      for (int step = 0; step < kStepsInGraph; ++step) {
        launch_sample({.logits = device_logits.data(),
                       .pitch = kVocab,
                       .vocab = kVocab,
                       .row_count = row_count.data(),
                       .rows = device_rows.data(),
                       .recent = recent.data(),
                       .token = token.data(),
                       .position = position.data(),
                       .outputs = outputs.data(),
                       .top = top.data(),
                       .top_pitch = 20,
                       .workspace = workspace.data(),
                       .workspace_rows = max_rows},
                      max_rows, stream);
      }
      cudaGraph_t graph = nullptr;
      check_cuda(cudaStreamEndCapture(stream, &graph));
      cudaGraphExec_t executable = nullptr;
      check_cuda(cudaGraphInstantiate(&executable, graph, 0));
      cudaEvent_t start = nullptr;
      cudaEvent_t stop = nullptr;
      check_cuda(cudaEventCreate(&start));
      check_cuda(cudaEventCreate(&stop));
      for (int i = 0; i < 3; ++i) check_cuda(cudaGraphLaunch(executable, stream));
      check_cuda(cudaEventRecord(start, stream));
      for (int i = 0; i < kReplays; ++i) check_cuda(cudaGraphLaunch(executable, stream));
      check_cuda(cudaEventRecord(stop, stream));
      check_cuda(cudaStreamSynchronize(stream));
      float milliseconds = 0;
      check_cuda(cudaEventElapsedTime(&milliseconds, start, stop));
      std::printf("%-36s %d row%s %7.2f us\n", kind.name, max_rows, max_rows == 1 ? " " : "s",
                  1000.0 * milliseconds / (kStepsInGraph * kReplays));
      check_cuda(cudaEventDestroy(start));
      check_cuda(cudaEventDestroy(stop));
      check_cuda(cudaGraphExecDestroy(executable));
      check_cuda(cudaGraphDestroy(graph));
      check_cuda(cudaStreamDestroy(stream));
    }
  }
}

}  // namespace
}  // namespace gemma
