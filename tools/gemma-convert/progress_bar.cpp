#include "progress_bar.h"

#include <cstdio>
#include <string>

namespace gemma {
namespace {

constexpr std::size_t kCells = 30;
constexpr int kLineWidth = 78;

}  // namespace

ProgressBar::~ProgressBar() {
  if (is_drawn_) std::fprintf(stderr, "\r%*s\r", kLineWidth, "");
}

void ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  const Clock::time_point now = Clock::now();
  if (!is_shown_ || total == 0 || now - last_drawn_ < std::chrono::milliseconds(100)) return;
  last_drawn_ = now;
  is_drawn_ = true;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::string cells(static_cast<std::size_t>(share * kCells), '#');
  cells.resize(kCells, '.');
  const int decimals = unit_.divisor > 1 ? 1 : 0;
  std::fprintf(stderr, "\r[%s] %3.0f %%  %.*f of %.*f %s  %.0f %s  ", cells.c_str(), 100 * share, decimals,
               static_cast<double>(done) / unit_.divisor, decimals, static_cast<double>(total) / unit_.divisor,
               unit_.name, seconds > 0 ? static_cast<double>(done) / unit_.rate_divisor / seconds : 0.0,
               unit_.rate_name);
}

}  // namespace gemma
