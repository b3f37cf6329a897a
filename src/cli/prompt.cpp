#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/generation_options.h"
#include "cli/interrupt.h"
#include "cli/numbers.h"
#include "cli/result_output.h"
#include "cli/terminal.h"
#include "cli/text_input.h"
#include "gemma/engine.h"

namespace gemma::cli {
namespace {

struct PromptOptions {
  CommonOptions common;
  Request request;
  std::string text;
  std::string file;
  std::string tokens;
  CLI::Option* text_option = nullptr;
  CLI::Option* file_option = nullptr;
  CLI::Option* tokens_option = nullptr;
};

void read_prompt(PromptOptions& options) {
  if (*options.tokens_option) {
    options.request.tokens = parse_argument_ids(options.tokens, "--tokens");
  } else if (*options.file_option) {
    options.request.prompt = without_last_line_break(read_file(options.file, kMostPromptBytes));
  } else if (*options.text_option && options.text != "-") {
    options.request.prompt = options.text;
  } else {
    options.request.prompt =
        without_last_line_break(read_standard_input("the prompt", options.common.quiet, kMostPromptBytes));
  }
}

/// Refuses a text that cannot fit into the context without making tokens of it, which takes long and much memory.
void require_fitting(const std::string& text, const Engine& engine) {
  constexpr std::size_t kLong = std::size_t{1} << 20;
  if (text.size() < kLong) return;
  const Tokenizer& tokenizer = engine.tokenizer();
  std::size_t longest_piece = 1;
  for (int id = 0; id < tokenizer.size(); ++id) longest_piece = std::max(longest_piece, tokenizer.piece(id).size());
  const std::size_t tokens = text.size() / longest_piece;
  const int context = engine.info().context;
  if (tokens < static_cast<std::size_t>(context)) return;
  throw Error("the prompt is too long: it has at least " + std::to_string(tokens) + " tokens, and the context of " +
              std::to_string(context) + " must also hold the answer; shorten it or raise --context");
}

int run(PromptOptions& options) {
  const CommonOptions& common = options.common;
  require_at_most_one({options.text_option, options.file_option, options.tokens_option},
                      "give the prompt once: as TEXT, with --file or with --tokens");
  if (options.request.options.logprobs > 0 && !common.json) throw UsageError("--logprobs needs --json");
  read_prompt(options);
  choose_model(options.common);
  Engine engine(common.engine);
  note_device(engine.info(), common);
  require_fitting(options.request.prompt, engine);

  const bool is_streaming = !common.json;
  // A person at a terminal sees the beginning that is continued; a program gets what was made, and nothing else.
  const bool shows_prompt = options.request.tokens.empty() && !common.quiet && is_terminal(STDOUT_FILENO) &&
                            !options.request.options.chat.value_or(engine.info().is_chat);
  const InterruptGuard interrupt;
  char last = 0;
  ProgressBar progress("Reading the prompt", !common.quiet);
  const auto on_text = [&](std::string_view text) {
    if (is_streaming && !text.empty()) {
      if (last == 0 && shows_prompt) print_prompt(options.request.prompt);
      print_answer(text);
      last = text.back();
    }
    return !interrupt.was_interrupted();
  };
  const auto on_progress = [&](int read, int total) {
    progress.update(read, total);
    if (read == total) progress.clear();
    return !interrupt.was_interrupted();
  };
  const Result result = engine.generate(options.request, on_text, on_progress);
  progress.clear();
  if (result.is_damaged) warn_of_damage(engine.info());

  if (common.json) {
    print_json(to_json(result, engine.tokenizer()));
  } else if (last != '\n') {
    print("\n");
  }
  if (common.stats) {
    print_statistics(result, engine.info());
  } else if (!common.json && !common.quiet && !options.request.options.seed &&
             options.request.options.temperature != 0.0f) {
    print_note("Seed " + std::to_string(result.seed) + ": the same with --seed " + std::to_string(result.seed) + ".");
  }
  return result.finish_reason == FinishReason::kInterrupt ? kExitInterrupted : kExitDone;
}

}  // namespace

Command add_prompt_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("prompt", "Complete a text, or answer a chat turn");
  const auto options = std::make_shared<PromptOptions>();
  options->text_option =
      app->add_option("TEXT", options->text, "The prompt; - or none: standard input")->option_text(" ");
  options->file_option = app->add_option("--file", options->file, "Read the prompt from a file")->type_name("FILE");
  options->tokens_option =
      app->add_option("--tokens", options->tokens, "The prompt as ids: \"2 506 483\"")->type_name("IDS");
  add_generation_options(*app, options->request.options);
  add_template_options(*app, options->request.options);
  add_engine_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
