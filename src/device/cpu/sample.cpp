#include "device/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "device/cpu/elementwise.h"
#include "device/philox.h"

namespace gemma {
namespace {

struct Candidate {
  float logit = 0;
  int token = 0;

  /// Whether this one comes first in descending order.
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : token < other.token;
  }
};

/// A logit that can be compared and subtracted: NaN counts as minus infinity, infinity as the largest number.
float usable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity()
                           : std::min(logit, std::numeric_limits<float>::max());
}

int greedy(std::span<const float> logits) {
  int best = 0;
  float max = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > max) {
      max = logits[i];
      best = static_cast<int>(i);
    }
  }
  return best;
}

/// The first `count` candidates in descending order. One pass over the logits; most of them are only compared with the
/// worst of the best so far.
std::vector<Candidate> best_candidates(std::span<const float> logits, std::size_t count) {
  count = std::min(count, logits.size());
  std::vector<Candidate> best;
  if (count == 0) return best;
  const std::size_t capacity = std::max<std::size_t>(2 * count, 256);
  best.reserve(std::min(capacity, logits.size()));
  float worst = -std::numeric_limits<float>::infinity();
  const auto shrink = [&] {
    std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(count - 1), best.end());
    best.resize(count);
    worst = best.back().logit;
  };
  bool is_full = false;  // whether `worst` is that of `count` candidates; later equals lose to it by their ids
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = usable(logits[i]);
    if (is_full && !(logit > worst)) continue;
    best.push_back({logit, static_cast<int>(i)});
    if (best.size() == capacity) {
      shrink();
      is_full = true;
    }
  }
  if (best.size() > count) shrink();
  std::sort(best.begin(), best.end());
  return best;
}

/// Candidates that are put into descending order only as far as somebody looks.
class SortedPrefix {
 public:
  explicit SortedPrefix(std::vector<Candidate> candidates, bool is_sorted)
      : candidates_(std::move(candidates)), sorted_(is_sorted ? candidates_.size() : 0) {}

  std::size_t size() const { return candidates_.size(); }

  /// All of them, in no order.
  std::span<const Candidate> all() const { return candidates_; }

  const Candidate& operator[](std::size_t index) {
    while (index >= sorted_) sort_more();
    return candidates_[index];
  }

 private:
  void sort_more() {
    const std::size_t end = std::min(candidates_.size(), std::max<std::size_t>(256, 4 * sorted_));
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted_);
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
    if (last != candidates_.end()) std::nth_element(first, last, candidates_.end());
    std::sort(first, last);
    sorted_ = end;
  }

  std::vector<Candidate> candidates_;
  std::size_t sorted_ = 0;
};

std::vector<Candidate> all_candidates(std::span<const float> logits) {
  std::vector<Candidate> all(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) all[i] = {usable(logits[i]), static_cast<int>(i)};
  return all;
}

int draw_penalised(std::span<const float> logits, const Sampling& sampling, int position) {
  if (sampling.temperature <= 0) return greedy(logits);

  const bool has_top_k = sampling.top_k > 0 && static_cast<std::size_t>(sampling.top_k) < logits.size();
  SortedPrefix candidates(
      has_top_k ? best_candidates(logits, static_cast<std::size_t>(sampling.top_k)) : all_candidates(logits),
      has_top_k);
  if (candidates.size() == 0) return 0;
  const double max = candidates[0].logit;
  if (max == -std::numeric_limits<double>::infinity()) return 0;

  // Relative to the likeliest token, whose weight is 1.
  const auto weight = [&](const Candidate& candidate) {
    return std::exp((candidate.logit - max) / sampling.temperature);
  };
  // The weight of the tokens that top-p and min-p leave; they are the first `kept` ones.
  double kept_weight = 0;
  std::size_t kept = candidates.size();
  if (sampling.top_p < 1 || sampling.min_p > 0) {
    double goal = std::numeric_limits<double>::infinity();
    if (sampling.top_p < 1) {
      double all = 0;
      for (const Candidate& candidate : candidates.all()) all += weight(candidate);
      goal = sampling.top_p * all;
    }
    kept = 0;
    while (kept < candidates.size() && kept_weight < goal) {
      const double next = weight(candidates[kept]);
      if (next < sampling.min_p) break;
      kept_weight += next;
      ++kept;
    }
  } else {
    for (const Candidate& candidate : candidates.all()) kept_weight += weight(candidate);
  }

  double rest = uniform_random(sampling.seed, position) * kept_weight;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    const double next = weight(candidates[i]);
    if (next <= 0) break;  // only rounding of the sum can lead here
    chosen = i;
    rest -= next;
    if (rest < 0) break;
  }
  return candidates[chosen].token;
}

}  // namespace

int draw_token(std::span<float> logits, const Sampling& sampling, std::span<const int> recent, int position) {
  if (sampling.repeat_penalty == 1.0f) return draw_penalised(logits, sampling, position);

  std::vector<int> tokens(recent.begin(), recent.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  std::erase_if(tokens, [&](int token) { return token < 0 || static_cast<std::size_t>(token) >= logits.size(); });

  std::vector<float> before;
  before.reserve(tokens.size());
  for (const int token : tokens) {
    float& logit = logits[static_cast<std::size_t>(token)];
    before.push_back(logit);
    logit = logit > 0 ? logit / sampling.repeat_penalty : logit * sampling.repeat_penalty;
  }
  const int drawn = draw_penalised(logits, sampling, position);
  for (std::size_t i = 0; i < tokens.size(); ++i) logits[static_cast<std::size_t>(tokens[i])] = before[i];
  return drawn;
}

double logprob_of(std::span<const float> logits, double normaliser, int token) {
  const double logit = usable(logits[static_cast<std::size_t>(token)]);
  return std::isinf(logit) ? logit : logit - normaliser;
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, double normaliser, int count) {
  std::vector<TokenLogprob> top;
  for (const Candidate& candidate : best_candidates(logits, static_cast<std::size_t>(std::max(count, 0)))) {
    top.push_back({candidate.token, static_cast<float>(logprob_of(logits, normaliser, candidate.token))});
  }
  return top;
}

Output answer(const OutputRow& wanted, std::span<float> logits, int position) {
  Output output;
  if (!wanted.logits.empty()) std::copy(logits.begin(), logits.end(), wanted.logits.begin());
  if (wanted.sampling) output.token = draw_token(logits, *wanted.sampling, wanted.recent, position);

  const int token = wanted.target >= 0 ? wanted.target : output.token;
  if (token >= 0 || wanted.top_logprobs > 0) {
    const double normaliser = log_sum_exp(logits);
    if (token >= 0) output.logprob = logprob_of(logits, normaliser, token);
    output.top = top_logprobs(logits, normaliser, wanted.top_logprobs);
  }
  return output;
}

}  // namespace gemma
