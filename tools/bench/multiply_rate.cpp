// Fused multiply-adds as fast as the vector units do them, with no memory involved. Highway chooses the instruction set
// when the program runs.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/multiply_rate.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "bench/cpu_limits.h"

HWY_BEFORE_NAMESPACE();
namespace gemma {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// @return FLOP done; `sink` receives what depends on all of them.
double multiply_add(long rounds, float* sink) {
  constexpr int kChains = 12;  // enough for the latency of two units
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999f);
  auto s0 = hn::Set(d, 1.0f), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0, s10 = s0,
       s11 = s0;
  for (long i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(s0, factor, factor);
    s1 = hn::MulAdd(s1, factor, factor);
    s2 = hn::MulAdd(s2, factor, factor);
    s3 = hn::MulAdd(s3, factor, factor);
    s4 = hn::MulAdd(s4, factor, factor);
    s5 = hn::MulAdd(s5, factor, factor);
    s6 = hn::MulAdd(s6, factor, factor);
    s7 = hn::MulAdd(s7, factor, factor);
    s8 = hn::MulAdd(s8, factor, factor);
    s9 = hn::MulAdd(s9, factor, factor);
    s10 = hn::MulAdd(s10, factor, factor);
    s11 = hn::MulAdd(s11, factor, factor);
  }
  const auto all =
      hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)),
              hn::Add(hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)), hn::Add(hn::Add(s8, s9), hn::Add(s10, s11))));
  *sink = hn::GetLane(all);
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

}  // namespace HWY_NAMESPACE
}  // namespace gemma
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma {

HWY_EXPORT(multiply_add);

double measure_multiply_rate(int threads) {
  constexpr long kRounds = 20'000'000;
  constexpr int kTries = 3;
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  double best = 0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::atomic<double> flop = 0;
    std::atomic<float> sink = 0;
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) {
      workers.emplace_back([&] {
        float sum = 0;
        const double done = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, &sum);
        sink = sum;
        flop += done;
      });
    }
    workers.clear();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, flop / seconds);
  }
  return best;
}

}  // namespace gemma
#endif
