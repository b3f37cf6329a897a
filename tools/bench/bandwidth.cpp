#include "bench/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace gemma {
namespace {

std::uint64_t sum(const std::uint64_t* first, std::size_t count) {
  // Independent sums, so that loads and not the additions are what takes time.
  std::uint64_t sums[32] = {};
  for (std::size_t i = 0; i + 32 <= count; i += 32) {
    for (std::size_t lane = 0; lane < 32; ++lane) sums[lane] += first[i + lane];
  }
  std::uint64_t total = 0;
  for (std::uint64_t lane : sums) total += lane;
  return total;
}

}  // namespace

double measure_read_bandwidth(int threads) {
  constexpr std::size_t kWords = std::size_t{1} << 27;  // 1 GiB
  constexpr int kTries = 5;
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  const std::vector<std::uint64_t> buffer(kWords, 1);
  const std::size_t share = kWords / static_cast<std::size_t>(threads);
  std::atomic<std::uint64_t> total = 0;

  double best = 0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) {
      workers.emplace_back([&, i] { total += sum(buffer.data() + static_cast<std::size_t>(i) * share, share); });
    }
    workers.clear();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best,
                    static_cast<double>(share * static_cast<std::size_t>(threads) * sizeof(std::uint64_t)) / seconds);
  }
  return best;
}

}  // namespace gemma
