#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "cli/batch_input.h"
#include "cli/partial_file.h"
#include "cli/shard.h"
#include "gemma/engine.h"

namespace gemma::cli {

/// What is to be done with the prompts of an input.
struct BatchWork {
  const InputFile& input;
  InputFormat format;
  Shard shard;
  GenerationOptions options;  ///< of lines that have none of their own
  std::uint64_t seed = 0;     ///< that lines without one get theirs from
};

/// What a run has done, not counting what former runs had done.
struct BatchCounts {
  std::uint64_t done = 0;  ///< prompts, with those that failed
  std::uint64_t failed = 0;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t cached_tokens = 0;  ///< of them, those that were read for another prompt already
  std::uint64_t tokens = 0;         ///< of finished answers
  bool has_damage = false;          ///< of the model, which showed in an answer
  std::uint64_t steps = 0;          ///< tokens made so far, also of answers that are not finished
};

/// Answers the prompts that the partial file has no results of, many at once, and puts the results there.
/// @param goes_on  asked before each step with what has been done so far; returns false to stop
/// @return the hash of the input, which it has read once more; nullopt if it was stopped.
/// @throws Error if the results cannot be kept, or the device fails.
std::optional<std::string> run_batch(Engine& engine, const BatchWork& work, PartialFile& partial, BatchCounts& counts,
                                     const std::function<bool()>& goes_on);

}  // namespace gemma::cli
