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
  std::fprintf(stderr, "\r[%s] %3.0f %%  %.1f of %.1f GB  %.0f MB/s  ", cells.c_str(), 100 * share,
               static_cast<double>(done) * 1e-9, static_cast<double>(total) * 1e-9,
               seconds > 0 ? static_cast<double>(done) * 1e-6 / seconds : 0.0);
}

}  // namespace gemma
