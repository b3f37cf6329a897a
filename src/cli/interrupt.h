#pragma once

namespace gemma::cli {

/// From now on Ctrl-C ends the program with the exit code that CLI users expect (130), and a closed pipe ends it
/// quietly.
void install_signal_handlers();

/// From now on SIGTERM, which batch systems send when a job's time is over, counts as Ctrl-C.
void take_termination_for_interrupt();

/// While it lives, the first Ctrl-C is noted instead of ending the program; a second one ends it. One that lives within
/// another begins with what the other has not taken, and leaves it nothing.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool was_interrupted() const;

  /// @return whether there is a Ctrl-C to answer, which then is answered: the next one is the first again.
  bool take();
};

}  // namespace gemma::cli
