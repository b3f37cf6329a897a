#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace gemma {

/// Which family of kernels works on a row. A property of the request, never of how many rows there are: a prompt of one
/// token is still a prompt.
enum class RowKind : std::uint8_t { kPrompt, kGenerated };

/// Stands for the token that the step before has drawn for the same sequence, which the host may not have seen yet.
/// Only for generated rows of a device that runs ahead, in a batch with the same sequences, one row each, as the one
/// before.
inline constexpr int kSampledToken = -1;

/// One token on its way through the model.
struct Row {
  int token = 0;     ///< in [0, vocab), or kSampledToken
  int position = 0;  ///< in its sequence, from 0
  int sequence = 0;  ///< index into Batch::sequences
  RowKind kind = RowKind::kPrompt;
};

/// The rows that one sequence contributes to a step, and where its keys and values live.
/// Its rows are neighbours in the batch and have consecutive positions.
struct SequenceRows {
  int first_row = 0;
  int rows = 0;
  int position = 0;  ///< of the first row; all earlier positions (within the window) are in the cache
  int ring = 0;      ///< which ring of every local layer is this sequence's
  std::span<const int> pages =
      {};  ///< pages[i] holds positions [i * kPagePositions, (i + 1) * kPagePositions); covers every row
};

/// How the next token is drawn from a row's logits, in this order: repeat penalty, temperature, top-k, top-p, min-p,
/// draw.
struct Sampling {
  float temperature = 1.0f;  ///< >= 0; 0 takes the largest logit (the lowest id among equals)
  int top_k = 0;             ///< >= 0; 0: all
  float top_p =
      1.0f;  ///< (0, 1]; keeps the smallest set of most likely tokens whose probabilities sum to at least this
  float min_p = 0.0f;           ///< [0, 1]; drops tokens less likely than this times the likeliest
  float repeat_penalty = 1.0f;  ///< > 0; logits of recent tokens are divided by it when positive, multiplied otherwise
  std::uint64_t seed = 0;
};

/// How many tokens back (of prompt and answer) the repeat penalty looks.
inline constexpr int kRepeatWindow = 64;

/// What is wanted of one row's logits.
struct OutputRow {
  int row = 0;                            ///< index into Batch::rows
  std::optional<Sampling> sampling = {};  ///< draw the next token; randomness is keyed by (seed, position of the row)
  std::span<const int> recent =
      {};                ///< the newest kRepeatWindow tokens or fewer, this row's included; for the repeat penalty
  int target = -1;       ///< when >= 0: the log-probability of this token is wanted
  int top_logprobs = 0;  ///< so many of the likeliest tokens are wanted with their log-probabilities
  std::span<float> logits = {};  ///< when not empty: [vocab], receives the soft-capped logits
};

/// One step's work: a prompt chunk, a decode step of many sequences, or both together.
struct Batch {
  std::vector<Row> rows;
  std::vector<SequenceRows> sequences;
  std::vector<OutputRow> outputs;  ///< in ascending order of row; empty in all but the last chunk of a prompt
};

/// Natural logarithm of a token's probability under the model's own distribution: before penalty, temperature and
/// filters.
struct TokenLogprob {
  int token = 0;
  float logprob = 0;
};

/// The answer to one OutputRow.
struct Output {
  int token = -1;                 ///< the drawn token, if one was asked for
  double logprob = 0;             ///< of `target` if there is one, else of `token`
  std::vector<TokenLogprob> top;  ///< `top_logprobs` entries, likeliest first, the lower id first among equals
};

}  // namespace gemma
