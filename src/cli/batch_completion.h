#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/common_options.h"
#include "cli/shard.h"
#include "gemma/engine.h"

namespace CLI {
class Option;
}

namespace gemma::cli {

struct BatchOptions {
  CommonOptions common;
  GenerationOptions generation;
  std::vector<std::string> files;  ///< INPUT, or the shards to merge
  std::string output;
  std::string merge;
  Shard shard;
  bool overwrite = false;
  CLI::Option* output_option = nullptr;
  CLI::Option* shard_option = nullptr;
  CLI::Option* merge_option = nullptr;
};

/// Where the results of an output are kept until it is complete: "OUTPUT.partial".
std::filesystem::path partial_path(const std::filesystem::path& output);

/// Finds out before the work what would be a pity to find out after it.
/// @throws Error or UsageError if the output cannot be written, or is one of the inputs.
void check_output(const std::filesystem::path& output, const std::vector<std::string>& inputs);

/// @throws Error saying that the output is there already.
[[noreturn]] void fail_existing(const std::filesystem::path& output);

/// Completes the prompts of INPUT, or goes on with it. @return the exit code.
int complete_batch(BatchOptions& options);

}  // namespace gemma::cli
