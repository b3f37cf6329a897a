#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace gemma::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

/// The command line asks for something that makes no sense: exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A subcommand of gemma-run.
struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;  ///< called once the options are parsed; @return the exit code
};

/// @throws UsageError saying `hint` if more than one of the options is there.
void require_at_most_one(const std::vector<const CLI::Option*>& options, const std::string& hint);

Command add_prompt_command(CLI::App& program);
Command add_chat_command(CLI::App& program);
Command add_batch_command(CLI::App& program);
Command add_score_command(CLI::App& program);
Command add_tokenize_command(CLI::App& program);
Command add_inspect_command(CLI::App& program);

}  // namespace gemma::cli
