#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace gemma {

/// Cores that this process may use: those of its affinity mask.
int usable_cores();

/// Threads that wait for work together with the one that hands it out. Made for many short parallel regions in a row:
/// a waiting thread spins for some microseconds before it goes to sleep.
class ThreadPool {
 public:
  /// @param threads  at least 1; the caller of `run` is one of them.
  /// @throws Error if the system does not give so many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(task, thread) for every task in [0, tasks), each once, in any order, on any thread in [0, threads()),
  /// and returns when all are done. One call at a time, not from inside a body.
  /// @throws whatever a body throws (the first one); the remaining tasks are then left out.
  template <typename Body>
  void run(int tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased(
        tasks, [](void* context, int task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using Call = void (*)(void* context, int task, int thread);

  void run_erased(int tasks, Call call, void* context);
  void work(int thread);
  void serve(int thread);
  void stop();

  // Read by the workers after they have seen a new round.
  Call call_ = nullptr;
  void* context_ = nullptr;
  int tasks_ = 0;

  alignas(64) std::atomic<int> next_task_ = 0;
  alignas(64) std::atomic<std::uint32_t> round_ = 0;  // grows by one with every region, and once more at the end
  alignas(64) std::atomic<std::uint32_t> busy_ = 0;   // workers that have not finished the round
  std::atomic<bool> is_stopping_ = false;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  std::vector<std::thread> workers_;
};

}  // namespace gemma
