#include "cli/chat_input.h"

#include <unistd.h>

#include <cstdint>
#include <iostream>
#include <optional>

#include "cli/input_history.h"
#include "cli/line_editor.h"
#include "cli/terminal.h"
#include "cli/typed_text.h"

namespace gemma::cli {
namespace {

class TypedInput final : public ChatInput {
 public:
  TypedInput() : history_(default_history_file()), editor_(history_.entries()) {}

  Entry next() override {
    TypedText text;
    while (true) {
      LineEditor::Input line = editor_.read(text.is_open() ? "... " : ">>> ");
      if (line.end == LineEditor::End::kEndOfFile) return {End::kEndOfFile, "", ""};
      if (line.end == LineEditor::End::kInterrupt) {
        if (line.text.empty() && !text.is_open()) return {End::kInterrupt, "", ""};
        text.clear();
        continue;
      }
      std::optional<std::string> whole = text.push(line.text);
      if (!whole) continue;
      if (whole->find_first_not_of(" \t\n") != std::string::npos) {
        history_.add(*whole);
        editor_.remember(*whole);
      }
      return {End::kText, std::move(*whole), ""};
    }
  }

  bool is_interactive() const override { return true; }

 private:
  InputHistory history_;
  LineEditor editor_;
};

// Far more than any context holds.
constexpr std::size_t kLongestLine = std::size_t{16} << 20;

struct PipedLine {
  std::string text;
  bool is_there = false;  // false at the end of the input
  bool is_too_long = false;
};

// The next line without its line break. What is too much of it is read and dropped.
PipedLine read_line(std::streambuf& input) {
  constexpr int kEnd = std::char_traits<char>::eof();
  PipedLine line;
  for (int character = input.sbumpc(); character != kEnd; character = input.sbumpc()) {
    line.is_there = true;
    if (character == '\n') break;
    if (line.text.size() < kLongestLine) {
      line.text += static_cast<char>(character);
    } else {
      line.is_too_long = true;
    }
  }
  return line;
}

class PipedInput final : public ChatInput {
 public:
  Entry next() override {
    PipedLine line = read_line(*std::cin.rdbuf());
    if (!line.is_there) return {End::kEndOfFile, "", ""};
    const std::string where = "line " + std::to_string(++number_) + ": ";
    if (line.is_too_long) {
      return {End::kText, "", where, "the line is longer than " + std::to_string(kLongestLine >> 20) + " MiB"};
    }
    if (line.text.ends_with('\r')) line.text.pop_back();
    return {End::kText, std::move(line.text), where};
  }

  bool is_interactive() const override { return false; }

 private:
  std::uint64_t number_ = 0;  // of the last line
};

}  // namespace

std::unique_ptr<ChatInput> open_chat_input() {
  if (is_terminal(STDIN_FILENO) && (is_terminal(STDERR_FILENO) || is_terminal(STDOUT_FILENO))) {
    return std::make_unique<TypedInput>();
  }
  return std::make_unique<PipedInput>();
}

}  // namespace gemma::cli
