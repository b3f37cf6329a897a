#pragma once

#include <string>

namespace gemma::cli {

/// A piece for people to read on one line: line breaks, tabs and other control characters written as escapes.
std::string visible(const std::string& piece);

}  // namespace gemma::cli
