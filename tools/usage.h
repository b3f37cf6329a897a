#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace gemma {

/// Ends a program whose command line asks for its help or version, or for something that makes no sense, which is told
/// as gemma-run tells it: in one line.
/// @return the exit code
inline int end_parsing(const CLI::App& app, const CLI::ParseError& error) {
  constexpr int kWrongUsage = 2;
  if (error.get_exit_code() == 0) return app.exit(error);
  std::string message = error.what();
  const std::vector<std::string> unexpected = app.remaining();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr && !unexpected.empty()) {
    const auto is_option = [](const std::string& argument) { return argument.size() > 1 && argument.front() == '-'; };
    const auto option = std::find_if(unexpected.begin(), unexpected.end(), is_option);
    message = option != unexpected.end() ? "there is no option '" + *option + "'"
                                         : "there is no place for '" + unexpected.front() + "'";
  }
  const std::string& name = app.get_name();
  std::fprintf(stderr, "%s: %s (see %s --help)\n", name.c_str(), message.c_str(), name.c_str());
  return kWrongUsage;
}

}  // namespace gemma
