#pragma once

#include <string>
#include <utility>
#include <vector>

#include "gemma/engine.h"

namespace gemma::cli {

/// What `/set` can change, each with its present value: ("temperature", "0.7"), ("top-k", "the model's"), ...
std::vector<std::pair<std::string, std::string>> settings_of(const GenerationOptions& options);

/// Gives an option the value that the command line's option of that name would give it; without a value, its default.
/// @throws gemma::Error if there is no such option, or the value is out of its range.
void change_setting(GenerationOptions& options, const std::string& name, const std::string& value);

}  // namespace gemma::cli
