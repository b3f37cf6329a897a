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

class PipedInput final : public ChatInput {
 public:
  Entry next() override {
    std::string line;
    if (!std::getline(std::cin, line)) return {End::kEndOfFile, "", ""};
    if (line.ends_with('\r')) line.pop_back();
    ++number_;
    return {End::kText, std::move(line), "line " + std::to_string(number_) + ": "};
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
