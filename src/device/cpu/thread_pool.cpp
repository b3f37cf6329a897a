#include "device/cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "gemma/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemma {
namespace {

/// How long a thread spins before it sleeps: longer than the serial work between two regions of a decode step, far too
/// short to be noticed as load.
constexpr std::chrono::microseconds kSpin{50};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns once `value` differs from `old`.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails where there are more than 1024 processors.
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
  } catch (const std::system_error&) {
    const std::size_t started = workers_.size() + 1;
    stop();
    throw Error("cannot start " + std::to_string(threads) + " threads: the system gives " + std::to_string(started) +
                ". Ask for fewer with --threads.");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  is_stopping_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(int tasks, Call call, void* context) {
  if (tasks <= 1 || workers_.empty()) {
    for (int task = 0; task < tasks; ++task) call(context, task, 0);
    return;
  }
  call_ = call;
  context_ = context;
  tasks_ = tasks;
  next_task_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();

  work(0);
  for (std::uint32_t busy; (busy = busy_.load(std::memory_order_acquire)) != 0;) wait_for_change(busy_, busy);
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::work(int thread) {
  for (int task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
    try {
      call_(context_, task, thread);
    } catch (...) {
      next_task_.store(tasks_, std::memory_order_relaxed);
      const std::lock_guard lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }
}

void ThreadPool::serve(int thread) {
  for (std::uint32_t seen = 0;; ++seen) {
    wait_for_change(round_, seen);
    if (is_stopping_.load(std::memory_order_relaxed)) return;
    work(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

}  // namespace gemma
