#include "cli/command.h"

#include <CLI/CLI.hpp>
#include <algorithm>

namespace gemma::cli {

void require_at_most_one(const std::vector<const CLI::Option*>& options, const std::string& hint) {
  const auto is_given = [](const CLI::Option* option) { return option->count() > 0; };
  if (std::count_if(options.begin(), options.end(), is_given) > 1) throw UsageError(hint);
}

}  // namespace gemma::cli
