#pragma once

namespace gemma::cli {

/// From now on Ctrl-C ends the program with the exit code that CLI users expect (130), and a closed pipe ends it
/// quietly.
void install_signal_handlers();

/// While it lives, the first Ctrl-C is noted instead of ending the program; a second one ends it.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool was_interrupted() const;
};

}  // namespace gemma::cli
