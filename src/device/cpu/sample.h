#pragma once

#include <span>

#include "device/batch.h"

namespace gemma {

/// Draws a token from one row's logits: repeat penalty, temperature, top-k, top-p, min-p, then one random number keyed
/// by (seed, position) chooses along the remaining tokens in descending order of probability (the lower id first among
/// equals).
///
/// NaN counts as minus infinity; token 0 is the answer when nothing is left.
/// @param logits    [vocab]; changed by the penalty and restored.
/// @param recent    ids that the penalty applies to, each once; ids outside the vocabulary are ignored.
/// @param position  of the row whose logits these are.
int draw_token(std::span<float> logits, const Sampling& sampling, std::span<const int> recent, int position);

/// The `count` likeliest tokens (all if there are fewer) and their log-probabilities, likeliest first, the lower id
/// first among equals.
/// @param normaliser  log_sum_exp(logits)
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, double normaliser, int count);

/// Natural logarithm of one token's probability; minus infinity where the logit is NaN.
double logprob_of(std::span<const float> logits, double normaliser, int token);

/// Everything that one output row asks for.
/// @param logits  [vocab], soft-capped; as they were when the call returns.
Output answer(const OutputRow& wanted, std::span<float> logits, int position);

}  // namespace gemma
