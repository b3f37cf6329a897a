#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/version.h"

namespace gemma::cli {
namespace {

// CLI11's help with one empty line between groups instead of two.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    return CLI::detail::find_and_replace(CLI::Formatter::make_help(app, name, mode), "\n\n\n", "\n\n");
  }
};

int fail(const std::string& message, int exit_code) {
  std::fprintf(stderr, "gemma-run: %s\n", message.c_str());
  return exit_code;
}

// What CLI11 says about an argument that has no place or a command that is not there does not help much.
std::string explain(const CLI::App& program, const CLI::ParseError& error) {
  const std::vector<std::string> unexpected = program.remaining(/*recurse=*/true);
  const auto is_option = [](const std::string& argument) { return argument.size() > 1 && argument.front() == '-'; };
  const auto option = std::find_if(unexpected.begin(), unexpected.end(), is_option);
  if (program.get_subcommands().empty()) {
    if (unexpected.empty()) return "name a command: prompt, chat, batch, score, tokenize or inspect";
    return "there is no command '" + unexpected.front() + "'";
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) == nullptr || unexpected.empty()) return error.what();
  if (option != unexpected.end()) return "there is no option '" + *option + "'";
  return "there is no place for '" + unexpected.front() + "'; a text of several words needs quotes";
}

int fail_usage(const CLI::App& program, const std::string& message) {
  const std::vector<CLI::App*> used = program.get_subcommands();
  const std::string command = used.empty() ? "" : used.front()->get_name() + " ";
  return fail(message + " (see gemma-run " + command + "--help)", kExitUsage);
}

int run(int argc, char** argv) {
  CLI::App program("Runs Google's Gemma 2 models.", "gemma-run");
  program.set_version_flag("--version", version_text(), "Print version, devices and architectures");
  program.set_help_flag("-h,--help", "Print this help");
  program.formatter(std::make_shared<HelpFormatter>());
  program.get_formatter()->column_width(26);
  program.require_subcommand(1);
  program.footer("Try: gemma-run prompt \"Once upon a time\"");
  const std::vector<Command> commands = {add_prompt_command(program),   add_chat_command(program),
                                         add_batch_command(program),    add_score_command(program),
                                         add_tokenize_command(program), add_inspect_command(program)};
  try {
    program.parse(argc, argv);
    for (const Command& command : commands) {
      if (command.app->parsed()) return command.run();
    }
    return kExitUsage;
  } catch (const CLI::Success& help_or_version) {
    return program.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    return fail_usage(program, explain(program, error));
  } catch (const UsageError& error) {
    return fail_usage(program, error.what());
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try a smaller --context", kExitFailed);
  } catch (const std::exception& error) {
    return fail(error.what(), kExitFailed);
  }
}

}  // namespace
}  // namespace gemma::cli

int main(int argc, char** argv) {
  gemma::cli::install_signal_handlers();
  return gemma::cli::run(argc, argv);
}
