#pragma once

#include <string>

namespace gemma::cli {

/// All of a file; "-" is standard input.
/// @throws gemma::Error if it cannot be read.
std::string read_file(const std::string& path);

/// All of standard input. On a terminal, says on standard error how to end it (unless `quiet`).
/// @param what  is read: "the prompt".
std::string read_standard_input(const std::string& what, bool quiet);

/// The text without the line break at its end, which an editor or `echo` has put there.
std::string without_last_line_break(std::string text);

}  // namespace gemma::cli
