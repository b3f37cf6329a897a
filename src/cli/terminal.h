#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gemma::cli {

bool is_terminal(int file_descriptor);

/// Writes text that the user asked for to standard output, at once.
/// @throws gemma::Error if it cannot be written.
void print(std::string_view text);

/// Writes a line to standard error: faint on a terminal, unless NO_COLOR is set.
void print_note(const std::string& text);

/// Shows a prompt on standard error (if that is a terminal), faint, for its continuation to follow on the same line.
void print_prompt(const std::string& text);

/// A bar on standard error that shows how far a long task has got; nothing when that is not a terminal.
class ProgressBar {
 public:
  ProgressBar(std::string label, bool is_wanted);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::uint64_t done, std::uint64_t total);
  void clear();  ///< takes it away again

 private:
  std::string label_;
  bool is_shown_;
  int percent_ = -1;  // the last one drawn
};

}  // namespace gemma::cli
