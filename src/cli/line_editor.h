#pragma once

#include <memory>
#include <string>
#include <vector>

namespace gemma::cli {

/// Reads lines that a person edits at a terminal (libedit): with history, UTF-8 whatever the locale, and pasted texts,
/// which come as one line with line breaks in it and are not sent before Enter is pressed. Alt-Enter puts a line break
/// in; Ctrl-Z suspends the program. While it lives, Ctrl-C does not end the program.
class LineEditor {
 public:
  enum class End {
    kEnter,
    kInterrupt,  ///< Ctrl-C, in this line or since the last one
    kEndOfFile,  ///< Ctrl-D on an empty line, or the terminal is gone
  };
  struct Input {
    End end = End::kEnter;
    std::string text;  ///< valid UTF-8; what stood in the line also at kInterrupt
  };

  /// Standard input must be a terminal. What is edited is shown on standard error if that is one, too, else on standard
  /// output.
  /// @param history  earlier entries, oldest first.
  /// @throws gemma::Error if the terminal cannot be used.
  explicit LineEditor(const std::vector<std::string>& history);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  /// @param prompt  stands before the line: plain text.
  Input read(const std::string& prompt);

  /// Puts an entry at the end of the history.
  void remember(const std::string& entry);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma::cli
