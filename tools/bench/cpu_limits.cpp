#include "bench/cpu_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace gemma {
namespace {

// Reads as a matrix product with one row does: several streams side by side, each asked for ahead of its use. One
// stream alone leaves a core waiting for latency.
std::uint64_t sum(const std::uint64_t* first, std::size_t count) {
  constexpr std::size_t kStreams = 8;
  constexpr std::size_t kLine = 8;    // words of a cache line
  constexpr std::size_t kAhead = 16;  // lines
  const std::size_t stream = count / kStreams;
  std::uint64_t sums[kLine] = {};
  for (std::size_t i = 0; i + kLine <= stream; i += kLine) {
    for (std::size_t s = 0; s < kStreams; ++s) {
      const std::uint64_t* line = first + s * stream + i;
      __builtin_prefetch(line + kAhead * kLine);
      for (std::size_t word = 0; word < kLine; ++word) sums[word] += line[word];
    }
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
