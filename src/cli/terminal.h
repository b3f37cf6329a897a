#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace gemma::cli {

bool is_terminal(int file_descriptor);

/// Whether the terminal behind a descriptor understands escape sequences; false also if it is no terminal.
bool has_escapes(int file_descriptor);

/// Columns of the terminal behind a descriptor; 80 if it does not tell.
int terminal_width(int file_descriptor);

/// Writes text that the user asked for to standard output, at once.
/// @throws gemma::Error if it cannot be written.
void print(std::string_view text);

/// The text with its control characters (other than line breaks and tabs) written as escapes, `\x1B`: a terminal shows
/// them instead of obeying them.
/// @param text  whole UTF-8 characters.
std::string harmless(std::string_view text);

/// Writes text that a model made to standard output, at once: harmless on a terminal, elsewhere as it is.
/// @throws gemma::Error if it cannot be written.
void print_answer(std::string_view text);

/// Writes a line to standard error: faint on a terminal, unless NO_COLOR is set.
void print_note(const std::string& text);

/// Shows a prompt on standard error (if that is a terminal), faint, for its continuation to follow on the same line.
void print_prompt(const std::string& text);

/// A line on standard error that appears only when a task takes more than a second, and goes away with the task;
/// nothing when that is not a terminal.
class LateNote {
 public:
  LateNote(std::string text, bool is_wanted);
  ~LateNote();
  LateNote(const LateNote&) = delete;
  LateNote& operator=(const LateNote&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_done_ = false;
  std::thread thread_;
};

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
