#include "device/cuda/limits.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

#include "device/cuda/handles.h"
#include "gemm.h"
#include "read_memory.cuh"

namespace gemma::cuda {
namespace {

constexpr int kTries = 5;

/// Seconds that `work` takes on the GPU, the shortest of a few tries.
template <class Work>
double fastest(const Stream& stream, const Work& work) {
  double best = 0;
  for (int attempt = 0; attempt <= kTries; ++attempt) {
    TimedEvent start, end;
    start.record(stream);
    work();
    end.record(stream);
    const double seconds = start.seconds_until(end);
    if (attempt == 1 || (attempt > 1 && seconds < best)) best = seconds;  // the first warms up
  }
  return best;
}

double read_rate(const Stream& stream) {
  std::size_t available = 0, total = 0;
  check_cuda(cudaMemGetInfo(&available, &total));
  constexpr std::size_t kMost = std::size_t{4} << 30;
  const std::size_t bytes = std::min(kMost, available / 2) / 4096 * 4096;
  const Buffer<std::byte> memory(bytes);
  const Buffer<unsigned> sum(1);
  check_cuda(cudaMemsetAsync(memory.data(), 1, bytes, stream));
  const double seconds = fastest(stream, [&] { launch_read_memory(memory.data(), bytes, sum.data(), stream); });
  return static_cast<double>(bytes) / seconds;
}

/// Fills a matrix with random numbers, which take more power than equal ones: with those the clock would be higher than
/// it ever is at work.
void fill_randomly(const Buffer<__nv_bfloat16>& matrix) {
  std::vector<__nv_bfloat16> pattern(std::size_t{1} << 20);
  std::minstd_rand random;
  std::normal_distribution<float> normal;
  for (__nv_bfloat16& value : pattern) value = __float2bfloat16(normal(random));
  for (std::size_t i = 0; i < matrix.size(); i += pattern.size()) {
    const std::size_t count = std::min(pattern.size(), matrix.size() - i);
    upload(matrix, i, std::span<const __nv_bfloat16>(pattern).first(count));
  }
}

double multiply_rate(const Stream& stream) {
  constexpr int kSize = 8192;
  constexpr std::size_t kElements = std::size_t{kSize} * kSize;
  const Buffer<__nv_bfloat16> in(kElements), weights(kElements);
  const Buffer<float> out(kElements);
  fill_randomly(in);
  fill_randomly(weights);
  Gemm gemm(kSize, /*uses_wgmma=*/false);
  const double seconds =
      fastest(stream, [&] { gemm.multiply(out.data(), in.data(), weights.data(), kSize, kSize, kSize, stream); });
  return 2.0 * kSize * kElements / seconds;
}

}  // namespace

DeviceLimits measure_limits() {
  const Stream stream;
  return {.read_bytes_per_s = read_rate(stream), .multiply_flop_per_s = multiply_rate(stream)};
}

}  // namespace gemma::cuda
