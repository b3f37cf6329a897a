#pragma once

#include <chrono>
#include <string>

namespace gemma::cli {

/// A line on standard error that changes in place; nothing when that is not a terminal.
class StatusLine {
 public:
  explicit StatusLine(bool is_wanted);
  ~StatusLine() { clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  /// Whether it is time to show something new: a few times a second, and never when nothing is shown.
  bool is_due() const;

  /// @param text  printable ASCII; what does not fit into the terminal's width is left out
  void show(const std::string& text);
  void clear();  ///< takes it away again

 private:
  bool is_shown_;
  bool is_there_ = false;
  std::chrono::steady_clock::time_point last_;
};

/// How far a long task has got: "  37/512 [####      ] 123.4 tokens/s, 0:42 left".
struct BatchProgress {
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  double tokens_per_s = 0;
  double seconds_left = 0;  ///< negative: not known yet
};

/// @param width  columns that there are: the bar takes what the numbers leave
std::string to_text(const BatchProgress& progress, int width);

std::string in_time(double seconds);  ///< "0:42", "1:02:03"

}  // namespace gemma::cli
