#include <CLI/CLI.hpp>
#include <memory>
#include <system_error>

#include "cli/batch_completion.h"
#include "cli/batch_merge.h"
#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/generation_options.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/numbers.h"
#include "cli/partial_file.h"
#include "cli/statistics.h"
#include "cli/terminal.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

int merge(const BatchOptions& options) {
  const std::filesystem::path output = options.merge;
  std::vector<std::filesystem::path> shards(options.files.begin(), options.files.end());
  check_output(output, options.files);
  std::error_code ignored;
  if (std::filesystem::exists(output, ignored) && !options.overwrite) fail_existing(output);
  if (shards.empty()) shards = find_shards(output);
  const PartialFile lock(partial_path(output));  // keeps out who else would write the output
  const InterruptGuard interrupt;
  ProgressBar progress("Merging", !options.common.quiet);
  const Merged merged = merge_shards(output, shards, [&](std::uint64_t done, std::uint64_t total) {
    progress.update(done, total);
    return !interrupt.was_interrupted();
  });
  progress.clear();
  if (interrupt.was_interrupted()) return kExitInterrupted;
  if (options.common.json) {
    print_json({{"output", output.string()},
                {"is_finished", true},
                {"prompts", merged.prompts},
                {"failed", merged.failed},
                {"shards", merged.shards}});
  }
  if (options.common.quiet) return kExitDone;
  print_note("Wrote " + in_quotes(output.native()) + ": " + count_of(merged.prompts, "prompt") + " from " +
             count_of(merged.shards, "shard") + ", " + grouped(merged.failed) + " failed.");
  if (merged.has_mixed_devices) {
    print_note("The shards were made on different devices; one run on one of them may give other answers.");
  }
  return kExitDone;
}

int run(BatchOptions& options) {
  take_termination_for_interrupt();
  if (*options.merge_option) {
    if (*options.output_option || *options.shard_option) {
      throw UsageError("--merge OUTPUT takes the shards' files, or none: neither --output nor --shard");
    }
    return merge(options);
  }
  if (options.files.size() != 1 || options.files.front() == "-") {
    throw UsageError("name one INPUT, a file of prompts (it is read twice, so it cannot be standard input)");
  }
  if (!*options.output_option || options.output == "-") {
    throw UsageError("say where the results go: -o FILE (they are kept there as they finish, so it must be a file)");
  }
  return complete_batch(options);
}

}  // namespace

Command add_batch_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("batch", "Complete every prompt of a file");
  const auto options = std::make_shared<BatchOptions>();
  const auto is_named = [](const std::string& path) { return path.empty() ? "the file name is empty" : std::string(); };
  app->add_option("INPUT", options->files, "Prompts: .txt (one a line) or .jsonl")->option_text(" ")->check(is_named);
  options->output_option = app->add_option("-o,--output", options->output, "Results as JSON lines [must be given]")
                               ->type_name("FILE")
                               ->check(is_named);
  app->add_flag("--overwrite", options->overwrite, "Replace OUTPUT if it exists [off]");
  app->add_option("--parallel", options->common.engine.sequences, "Prompts at once [as many as fit]")
      ->type_name("N")
      ->check(whole_number(1, 4096));
  options->shard_option = app->add_option_function<std::string>(
                                 "--shard", [options](const std::string& text) { parse_shard(text, options->shard); },
                                 "Every N-th prompt from the I-th on [by srun or mpirun]")
                              ->type_name("I/N")
                              ->check([](const std::string& text) {
                                Shard ignored;
                                return parse_shard(text, ignored);
                              });
  options->merge_option = app->add_option("--merge", options->merge, "Join the shards of OUTPUT, or files given [off]")
                              ->type_name("OUTPUT")
                              ->check(is_named);
  options->common.engine.sequences = 0;
  add_generation_options(*app, options->generation);
  add_template_options(*app, options->generation);
  add_engine_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
