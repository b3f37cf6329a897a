#pragma once

// Choosing tokens on the GPU, and their log-probabilities: what the host must hand over. See sample.cu.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "device/batch.h"

namespace gemma {

/// Largest SampleRow::top_logprobs.
inline constexpr int kMaxTopLogprobs = 1024;

/// Largest vocabulary.
inline constexpr int kMaxSampledVocab = 1 << 18;

/// What is wanted of one row of logits: OutputRow in device memory.
struct SampleRow {
  Sampling sampling;     ///< as the CPU device understands it; not looked at unless is_drawn
  int logits_row = 0;    ///< which row of SampleArguments::logits
  int batch_row = 0;     ///< index into SampleArguments::token and position
  int target = -1;       ///< when >= 0: the log-probability of this token is wanted
  int top_logprobs = 0;  ///< 0 to kMaxTopLogprobs
  int is_drawn = 0;      ///< draw the next token
  int advances = 0;      ///< make the drawn token the input of the next step: see SampleArguments::token
};

/// The newest tokens of a row's sequence, for the repeat penalty: token i (from 0) that was ever put in is
/// tokens[i % kRepeatWindow] until a later one takes its place. `n` tokens to begin with: tokens[0 .. n - 1] and count
/// = n.
struct RecentTokens {
  int tokens[kRepeatWindow];
  int count;
};

/// The answer to one SampleRow. The likeliest tokens are in SampleArguments::top.
struct SampleOutput {
  double logprob;      ///< of SampleRow::target if there is one, else of `token`; 0 if there is neither
  std::int64_t token;  ///< -1 unless is_drawn; as wide as logprob, so that no byte of a copied answer is padding
};

/// One sampling step. All pointers are to device memory; what changes from step to step is behind them, so that one
/// captured graph serves all steps. `rows` here are those that want an answer, in any order.
struct SampleArguments {
  const float* logits;    ///< [.., pitch], soft-capped
  std::size_t pitch;      ///< floats from a row of logits to the next, >= vocab. A multiple of 4 is faster.
  int vocab;              ///< 1 to kMaxSampledVocab
  const int* row_count;   ///< rows of this step, 0 to max_rows
  const SampleRow* rows;  ///< [row_count]
  RecentTokens* recent;   ///< [row_count]; rows that advance append the drawn token
  int* token;             ///< [batch rows]; rows that advance write the drawn token to their batch_row
  int* position;          ///< [batch rows]: the key of the randomness; rows that advance add 1 after the draw
  SampleOutput* outputs;  ///< [row_count]
  TokenLogprob* top;      ///< [row_count, top_pitch]: the first min(top_logprobs, vocab) of a row are written
  int top_pitch;          ///< >= every row's top_logprobs
  void* workspace;        ///< sample_workspace_bytes(workspace_rows), aligned to 256; zero before the first launch
  int workspace_rows;     ///< the most rows that any step has: the same in all launches
};

/// Bytes of work space that steps of up to `max_rows` rows need.
std::size_t sample_workspace_bytes(int max_rows, int vocab);

/// Draws tokens and computes log-probabilities for *row_count rows. A row's answer depends on nothing but the row: the
/// same bits whatever the other rows and the GPU are.
///
/// Draws are those of the CPU device (device/cpu/sample.h) except where the random number falls within about 1e-9 of
/// the border between two tokens. Log-probabilities come from the logits as they are, before the repeat penalty.
/// @param max_rows  no fewer than *row_count, no more than workspace_rows: what the launch is for
/// @throws Error if the vocabulary is too large, max_rows is not 1 to 65535 or exceeds workspace_rows, or a launch
/// fails.
void launch_sample(const SampleArguments& arguments, int max_rows, cudaStream_t stream);

}  // namespace gemma
