#include "cli/terminal.h"

#include <unistd.h>

#include <cerrno>
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
  const bool has_color = is_terminal(STDERR_FILENO) && (no_color == nullptr || *no_color == '\0');
  return has_color ? "\x1B[2m" + text + "\x1B[0m" : text;
}

}  // namespace

bool is_terminal(int file_descriptor) { return isatty(file_descriptor) == 1; }

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw Error(std::string("cannot write to standard output: ") + std::strerror(errno));
}

void print_note(const std::string& text) { print_error(faint(text) + "\n"); }

void print_prompt(const std::string& text) {
  if (is_terminal(STDERR_FILENO)) print_error(faint(text));
}

ProgressBar::ProgressBar(std::string label, bool is_wanted)
    : label_(std::move(label)), is_shown_(is_wanted && is_terminal(STDERR_FILENO)) {}

void ProgressBar::clear() {
  if (percent_ >= 0) print_error("\r\x1B[K");
  percent_ = -1;
}

void ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  const int percent =
      total > 0 ? static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total)) : 100;
  if (!is_shown_ || percent == percent_) return;
  percent_ = percent;
  constexpr int kWidth = 40;
  const int filled = percent * kWidth / 100;
  print_error("\r" + label_ + " [" + std::string(static_cast<std::size_t>(filled), '#') +
              std::string(static_cast<std::size_t>(kWidth - filled), ' ') + "] " + std::to_string(percent) + "%");
}

}  // namespace gemma::cli
