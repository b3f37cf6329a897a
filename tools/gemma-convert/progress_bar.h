#pragma once

#include <chrono>
#include <cstdint>

namespace gemma {

/// One line on stderr that shows how far a job has got, drawn anew a few times a second.
class ProgressBar {
 public:
  /// @param is_shown  false: draws nothing.
  explicit ProgressBar(bool is_shown) : is_shown_(is_shown) {}
  ~ProgressBar();  ///< clears the line

  void update(std::uint64_t done, std::uint64_t total);

 private:
  using Clock = std::chrono::steady_clock;

  bool is_shown_;
  bool is_drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_{};
};

}  // namespace gemma
