#pragma once

#include <cstddef>
#include <string>

namespace gemma::cli {

/// More than the longest context takes, at the four bytes or so that a token has.
inline constexpr std::size_t kMostPromptBytes = std::size_t{64} << 20;

/// Of a text that is worked on piece by piece.
inline constexpr std::size_t kMostTextBytes = std::size_t{1} << 30;

/// All of a file; "-" is standard input.
/// @throws gemma::Error if it cannot be read, or has more than `most_bytes`, which some never end to have.
std::string read_file(const std::string& path, std::size_t most_bytes);

/// All of standard input. On a terminal, says on standard error how to end it (unless `quiet`).
/// @param what  is read: "the prompt".
std::string read_standard_input(const std::string& what, bool quiet, std::size_t most_bytes);

/// The text without the line break at its end, which an editor or `echo` has put there.
std::string without_last_line_break(std::string text);

}  // namespace gemma::cli
