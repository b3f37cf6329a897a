#include "device/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <thread>
#include <vector>

namespace gemma {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      pool.run(tasks, [&](int task, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, threads);
        ++runs[static_cast<std::size_t>(task)];
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, SeesInOneRegionWhatTheRegionBeforeHasWritten) {
  ThreadPool pool(3);
  std::vector<int> numbers(50);  // not atomic: regions must be ordered by the pool alone
  for (int round = 0; round < 2000; ++round) {
    pool.run(50, [&](int task, int) { numbers[static_cast<std::size_t>(49 - task)] += 1; });
  }
  EXPECT_EQ(numbers, std::vector<int>(50, 2000));
}

TEST(ThreadPool, WakesThreadsThatHaveGoneToSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> met = 0;
    // Each task waits for the other, so that both threads are needed.
    pool.run(2, [&](int, int) {
      ++met;
      while (met < 2) std::this_thread::yield();
    });
    EXPECT_EQ(met, 2);
  }
}

TEST(ThreadPool, UsesNoProcessorTimeWhileItHasNothingToDo) {
  ThreadPool pool(3);
  pool.run(3, [](int, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.02);
}

TEST(ThreadPool, HandsTheExceptionOfATaskToTheCallerAndWorksOn) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run(100,
                        [](int task, int) {
                          if (task == 13) throw std::runtime_error("13");
                        }),
               std::runtime_error);
  std::atomic<int> runs = 0;
  pool.run(100, [&](int, int) { ++runs; });
  EXPECT_EQ(runs, 100);
}

TEST(ThreadPool, CountsTheCoresOfTheAffinityMask) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace gemma
