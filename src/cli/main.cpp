#include <CLI/CLI.hpp>
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

int fail_usage(const CLI::App& program, std::string message) {
  const std::vector<const CLI::App*> used = program.get_subcommands(nullptr);
  std::string help = "gemma-run --help";
  for (const CLI::App* command : used) {
    if (command->parsed()) help = "gemma-run " + command->get_name() + " --help";
  }
  if (program.get_subcommands().empty() && !program.remaining().empty()) {
    message = "there is no command '" + program.remaining().front() + "'";
  }
  return fail(message + " (see " + help + ")", kExitUsage);
}

int run(int argc, char** argv) {
  CLI::App program("Runs Google's Gemma 2 models.", "gemma-run");
  program.set_version_flag("--version", version_text(), "Print version, devices and architectures");
  program.set_help_flag("-h,--help", "Print this help");
  program.formatter(std::make_shared<HelpFormatter>());
  program.get_formatter()->column_width(26);
  program.require_subcommand(1);
  program.footer("Try: gemma-run prompt \"Once upon a time\"");
  const std::vector<Command> commands = {add_prompt_command(program), add_score_command(program),
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
    return fail_usage(program, error.what());
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
