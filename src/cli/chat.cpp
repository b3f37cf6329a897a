#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/chat_commands.h"
#include "cli/chat_input.h"
#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/dialogue.h"
#include "cli/generation_options.h"
#include "cli/json_output.h"
#include "cli/terminal.h"
#include "cli/typed_text.h"
#include "gemma/engine.h"
#include "tokenizer/utf8.h"

namespace gemma::cli {
namespace {

struct ChatOptions {
  CommonOptions common;
  GenerationOptions generation;
  std::string system;
};

Engine load_engine(const CommonOptions& options) {
  const LateNote note("Loading the model ...", !options.quiet);
  return Engine(options.engine);
}

// What a message or a command leads to.
Reaction react(Dialogue& dialogue, const std::string& text) {
  require_utf8(text);
  const Wish wish = understand(text);
  if (!wish.command.empty() || text == "/") return obey(dialogue, wish.command, wish.text);
  if (trim(wish.text).empty()) return Reaction::kGoOn;
  return dialogue.ask(wish.text) ? Reaction::kGoOn : Reaction::kInterrupted;
}

int converse(Dialogue& dialogue, ChatInput& input, const CommonOptions& options) {
  bool is_leaving = false;  // the last thing that came was a Ctrl-C
  bool has_failed = false;
  while (true) {
    const ChatInput::Entry entry = input.next();
    if (entry.end == ChatInput::End::kEndOfFile) break;
    if (entry.end == ChatInput::End::kInterrupt) {
      if (is_leaving) return kExitInterrupted;
      if (!options.quiet) print_note("Ctrl-C once more leaves, as Ctrl-D and /exit do.");
      is_leaving = true;
      continue;
    }
    is_leaving = false;
    try {
      if (!entry.error.empty()) throw Error(entry.error);
      const Reaction reaction = react(dialogue, entry.text);
      if (reaction == Reaction::kLeave) break;
      if (reaction == Reaction::kInterrupted && !input.is_interactive()) return kExitInterrupted;
    } catch (const Error& error) {
      // Where nothing can be written any more there is no going on.
      if (std::ferror(stdout) != 0) throw;
      std::fprintf(stderr, "gemma-run: %s%s\n", entry.where.c_str(), error.what());
      if (options.json) print_json({{"error", error.what()}});
      has_failed = true;
    }
  }
  return has_failed && !input.is_interactive() ? kExitFailed : kExitDone;
}

int run(ChatOptions& options) {
  if (options.generation.logprobs > 0 && !options.common.json) throw UsageError("--logprobs needs --json");
  require_utf8(options.system);
  choose_model(options.common);
  Engine engine = load_engine(options.common);
  note_device(engine.info(), options.common);
  // A model that has no turns says so here, not at the first message.
  engine.count_tokens(messages_of({options.system, {}}, ""));
  const std::unique_ptr<ChatInput> input = open_chat_input();

  if (!options.common.quiet) {
    if (!engine.info().is_chat) print_note("This model was not made for conversation: it may not really answer.");
    if (input->is_interactive()) print_note("/help lists the commands; Ctrl-D leaves.");
  }
  Dialogue dialogue(engine, options.common, options.generation, options.system);
  const int exit_code = converse(dialogue, *input, options.common);
  dialogue.report_seed();
  return exit_code;
}

}  // namespace

Command add_chat_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("chat", "Talk with a model");
  const auto options = std::make_shared<ChatOptions>();
  app->add_option("--system", options->system, "What stands before the conversation [nothing]")->type_name("TEXT");
  add_generation_options(*app, options->generation);
  add_engine_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
