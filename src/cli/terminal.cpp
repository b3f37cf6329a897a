#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "gemma/error.h"

namespace gemma::cli {
namespace {

void print_error(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

std::string faint(const std::string& text) {
  const char* no_color = std::getenv("NO_COLOR");
  const bool has_color = has_escapes(STDERR_FILENO) && (no_color == nullptr || *no_color == '\0');
  return has_color ? "\x1B[2m" + text + "\x1B[0m" : text;
}

// The code of a C0 or C1 control character, or DEL, that a text begins with; -1 if it begins with something else.
int control_character(std::string_view text) {
  const auto byte = [text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
  if (byte(0) < 0x20 || byte(0) == 0x7F) return byte(0);
  // U+0080 to U+009F, among them one that begins escape sequences.
  if (byte(0) == 0xC2 && text.size() > 1 && byte(1) < 0xA0) return byte(1);
  return -1;
}

}  // namespace

bool is_terminal(int file_descriptor) { return isatty(file_descriptor) == 1; }

bool has_escapes(int file_descriptor) {
  const char* type = std::getenv("TERM");
  return is_terminal(file_descriptor) && type != nullptr && *type != '\0' && std::strcmp(type, "dumb") != 0;
}

int terminal_width(int file_descriptor) {
  winsize size{};
  return ioctl(file_descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string harmless(std::string_view text) {
  constexpr const char* kDigits = "0123456789ABCDEF";
  std::string shown;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const int code = control_character(text.substr(at));
    if (code < 0 || code == '\n' || code == '\t') {
      shown += text[at];
      continue;
    }
    shown += std::string("\\x") + kDigits[code >> 4] + kDigits[code & 0xF];
    if (code >= 0x80) ++at;
  }
  return shown;
}

void print_answer(std::string_view text) {
  if (is_terminal(STDOUT_FILENO)) {
    print(harmless(text));
  } else {
    print(text);
  }
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw Error(std::string("cannot write to standard output: ") + std::strerror(errno));
}

void print_note(const std::string& text) { print_error(faint(text) + "\n"); }

void print_prompt(const std::string& text) {
  if (is_terminal(STDERR_FILENO)) print_error(faint(text));
}

LateNote::LateNote(std::string text, bool is_wanted) {
  if (!is_wanted || !has_escapes(STDERR_FILENO)) return;
  thread_ = std::thread([this, text = std::move(text)] {
    std::unique_lock lock(mutex_);
    const auto is_done = [this] { return is_done_; };
    if (changed_.wait_for(lock, std::chrono::seconds(1), is_done)) return;
    print_error(faint(text));
    changed_.wait(lock, is_done);
    print_error("\r\x1B[K");
  });
}

LateNote::~LateNote() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    is_done_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

ProgressBar::ProgressBar(std::string label, bool is_wanted)
    : label_(std::move(label)), is_shown_(is_wanted && has_escapes(STDERR_FILENO)) {}

void ProgressBar::clear() {
  if (percent_ >= 0) print_error("\r\x1B[K");
  percent_ = -1;
}

void ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  const int percent =
      total > 0 ? static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total)) : 100;
  if (!is_shown_ || percent == percent_) return;
  percent_ = percent;
  // Label, brackets and percentage stand beside the bar; a line that wraps could not be taken away again.
  const int width = std::clamp(terminal_width(STDERR_FILENO) - static_cast<int>(label_.size()) - 9, 0, 40);
  const int filled = percent * width / 100;
  print_error("\r" + label_ + " [" + std::string(static_cast<std::size_t>(filled), '#') +
              std::string(static_cast<std::size_t>(width - filled), ' ') + "] " + std::to_string(percent) + "%");
}

}  // namespace gemma::cli
