#pragma once

#include <chrono>
#include <cstdint>

namespace gemma {

/// One line on stderr that shows how far a job has got, drawn anew a few times a second.
class ProgressBar {
 public:
  /// What is counted, and how a number of it is shown: divided, with a name behind.
  struct Unit {
    double divisor;
    const char* name;
    double rate_divisor;
    const char* rate_name;
  };
  static constexpr Unit kBytes{1e9, "GB", 1e6, "MB/s"};
  static constexpr Unit kTokens{1, "tokens", 1, "tokens/s"};

  /// @param is_shown  false: draws nothing.
  ProgressBar(bool is_shown, const Unit& unit) : is_shown_(is_shown), unit_(unit) {}
  ~ProgressBar();  ///< clears the line

  void update(std::uint64_t done, std::uint64_t total);

 private:
  using Clock = std::chrono::steady_clock;

  bool is_shown_;
  Unit unit_;
  bool is_drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_{};
};

}  // namespace gemma
