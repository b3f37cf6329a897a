#include "cli/status_line.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "cli/statistics.h"
#include "cli/terminal.h"

namespace gemma::cli {
namespace {

constexpr std::chrono::milliseconds kInterval{200};

}  // namespace

StatusLine::StatusLine(bool is_wanted) : is_shown_(is_wanted && is_terminal(STDERR_FILENO)) {}

bool StatusLine::is_due() const {
  return is_shown_ && (!is_there_ || std::chrono::steady_clock::now() - last_ >= kInterval);
}

void StatusLine::show(const std::string& text) {
  if (!is_shown_) return;
  const auto width = static_cast<std::size_t>(std::max(terminal_width(STDERR_FILENO) - 1, 0));
  std::fprintf(stderr, "\r%s\x1B[K", text.substr(0, width).c_str());
  std::fflush(stderr);
  is_there_ = true;
  last_ = std::chrono::steady_clock::now();
}

void StatusLine::clear() {
  if (!is_there_) return;
  std::fputs("\r\x1B[K", stderr);
  std::fflush(stderr);
  is_there_ = false;
}

std::string in_time(double seconds) {
  const auto whole = static_cast<long>(std::min(std::round(seconds), 1e9));
  char text[32];
  if (whole < 3600) {
    std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return text;
}

std::string to_text(const BatchProgress& progress, int width) {
  constexpr int kWidestBar = 40;
  const std::string total = std::to_string(progress.total);
  std::string done = std::to_string(progress.done);
  done.insert(0, total.size() - std::min(total.size(), done.size()), ' ');
  char speed[48];
  std::snprintf(speed, sizeof speed, " %.1f tokens/s", progress.tokens_per_s);
  std::string tail = speed;
  if (progress.seconds_left >= 0) tail += ", " + in_time(progress.seconds_left) + " left";

  const std::string head = done + "/" + total;
  const int room = width - 1 - static_cast<int>(head.size() + tail.size() + 3);
  const int columns = std::min(room, kWidestBar);
  if (columns < 5) return head + tail;
  const double share =
      progress.total > 0 ? static_cast<double>(progress.done) / static_cast<double>(progress.total) : 1;
  const auto filled = static_cast<std::size_t>(share * columns);
  return head + " [" + std::string(filled, '#') + std::string(static_cast<std::size_t>(columns) - filled, ' ') + "]" +
         tail;
}

}  // namespace gemma::cli
