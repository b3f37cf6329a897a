#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "cli/command.h"

namespace gemma::cli {
namespace {

std::atomic<int> guards = 0;
std::atomic<bool> is_interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_interrupt(int) {
  if (guards == 0 || is_interrupted.exchange(true)) _exit(kExitInterrupted);
}

void set_handler(int number, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(number, &action, nullptr);
}

bool is_ignored(int number) {
  struct sigaction action = {};
  sigaction(number, nullptr, &action);
  return action.sa_handler == SIG_IGN;
}

}  // namespace

void install_signal_handlers() {
  set_handler(SIGPIPE, SIG_DFL);
  // A file that may not grow further is told by the call that writes it.
  set_handler(SIGXFSZ, SIG_IGN);
  // A shell starts what shall run in the background with Ctrl-C ignored.
  if (!is_ignored(SIGINT)) set_handler(SIGINT, on_interrupt);
}

void take_termination_for_interrupt() {
  set_handler(SIGTERM, on_interrupt);
  // nohup starts what shall outlive its terminal with this ignored.
  if (!is_ignored(SIGHUP)) set_handler(SIGHUP, on_interrupt);
}

InterruptGuard::InterruptGuard() { ++guards; }

InterruptGuard::~InterruptGuard() {
  is_interrupted = false;
  --guards;
}

bool InterruptGuard::was_interrupted() const { return is_interrupted; }

bool InterruptGuard::take() { return is_interrupted.exchange(false); }

}  // namespace gemma::cli
