// What simt.h promises to find: each mistake here is one that a kernel could make.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "cuda_error.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

/// One block of so many threads with 1 KB of shared memory.
template <class... Parameters, class... Arguments>
void run_block(int threads, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = 1024;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// Copies 16 bytes by the copy engine and gives the last of them.
__global__ void copy_kernel(const int* from, bool waits, int* seen) {
  auto* barrier = reinterpret_cast<std::uint64_t*>(dynamic_shared_memory());
  int* to = reinterpret_cast<int*>(dynamic_shared_memory() + 128);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_expect_bytes(barrier, 16);
    bulk_copy(to, from, 16, barrier, streaming_policy());
  }
  __syncthreads();
  if (waits) barrier_wait(barrier, 0);
  if (threadIdx.x == 0) {
    *seen = to[3];
    barrier_wait(barrier, 0);
  }
}

TEST(Simt, ShowsACopyOnlyToThoseWhoWaitForIt) {
  alignas(16) const int from[4] = {1, 2, 3, 4};
  int seen = 0;
  run_block(64, copy_kernel, from, true, &seen);
  EXPECT_EQ(seen, 4);
  run_block(64, copy_kernel, from, false, &seen);
  EXPECT_EQ(seen, -1) << "what nothing was written to";
}

TEST(Simt, RefusesACopyThatIsNotAligned) {
  alignas(16) const int from[8] = {};
  int seen = 0;
  EXPECT_DEATH(run_block(64, copy_kernel, from + 1, true, &seen), "not aligned to 16 bytes");
}

__global__ void end_early_kernel(const int* from) {
  auto* barrier = reinterpret_cast<std::uint64_t*>(dynamic_shared_memory());
  barrier_init(barrier, 1);
  barrier_expect_bytes(barrier, 16);
  bulk_copy(dynamic_shared_memory() + 128, from, 16, barrier, streaming_policy());
}

TEST(Simt, RefusesABlockThatEndsWhileCopiesAreUnderWay) {
  alignas(16) const int from[4] = {};
  EXPECT_DEATH(run_block(1, end_early_kernel, from), "ends while copies are under way");
}

__global__ void write_beyond_kernel() {
  auto* barrier = reinterpret_cast<std::uint64_t*>(dynamic_shared_memory());
  barrier_init(barrier, 1);
  bulk_copy(dynamic_shared_memory() + 1024 - 16, dynamic_shared_memory(), 32, barrier, streaming_policy());
}

TEST(Simt, RefusesACopyThatLeavesSharedMemory) {
  EXPECT_DEATH(run_block(1, write_beyond_kernel), "not a place in dynamic shared memory");
}

__global__ void wait_for_nobody_kernel() {
  auto* barrier = reinterpret_cast<std::uint64_t*>(dynamic_shared_memory());
  if (threadIdx.x == 0) barrier_init(barrier, 1);
  __syncthreads();
  barrier_wait(barrier, 0);
}

TEST(Simt, EndsThreadsThatWaitForEachOtherForEver) {
  EXPECT_DEATH(run_block(32, wait_for_nobody_kernel), "wait for each other for ever");
}

__global__ void part_kernel(int* sum) {
  if (threadIdx.x == 3) {
    __syncwarp();
  } else {
    *sum = __shfl_xor_sync(~0u, *sum, 1);
  }
}

TEST(Simt, RefusesAWarpWhoseThreadsMeetAtDifferentPlaces) {
  int sum = 0;
  EXPECT_DEATH(run_block(32, part_kernel, &sum), "meet at different places");
}

__global__ void named_kernel(int* order) {
  // The second warp only says that it has been here.
  if (threadIdx.x < 32) {
    named_barrier<1, 64>();
    if (threadIdx.x == 0) *order = *order * 10 + 2;
  } else {
    if (threadIdx.x == 32) *order = *order * 10 + 1;
    named_barrier_arrive<1, 64>();
  }
}

TEST(Simt, LetsOneWarpWaitForWhatAnotherHasDone) {
  int order = 0;
  run_block(64, named_kernel, &order);
  EXPECT_EQ(order, 12);
}

__global__ void groups_kernel(int* sums) {
  // Of four warps, two groups of two each meet at a barrier of their own, the second group three times as often.
  const int group = static_cast<int>(threadIdx.x) / 64;
  __shared__ int counts[2];
  if (threadIdx.x % 64 == 0) counts[group] = 0;
  named_barrier<64>(3 + group);
  for (int round = 0; round < (group == 0 ? 1 : 3); ++round) {
    if (threadIdx.x % 64 == 32) counts[group] += 1;
    named_barrier<64>(3 + group);
    if (threadIdx.x % 64 == 0) sums[group] += counts[group];
    named_barrier<64>(3 + group);
  }
}

TEST(Simt, LetsGroupsOfWarpsMeetAtBarriersOfTheirOwn) {
  int sums[2] = {0, 0};
  run_block(128, groups_kernel, &sums[0]);
  EXPECT_EQ(sums[0], 1);
  EXPECT_EQ(sums[1], 1 + 2 + 3);
}

/// c = a b with a [16, 16] and b [16, 8], as the tensor cores' comment in ptx.cuh deals them out to lanes.
__global__ void product_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](float low, float high) { return pack_bf16(low, high); };
  const auto of_a = [&](int row, int column) { return pair(a[row * 16 + column], a[row * 16 + column + 1]); };
  const auto of_b = [&](int row) { return pair(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  float sum[4] = {};
  multiply_accumulate(sum, of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8), of_a(g + 8, 2 * t + 8), of_b(2 * t),
                      of_b(2 * t + 8));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

/// The same in float16.
__global__ void half_product_kernel(const float* a, const float* b, float* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto of_a = [&](int row, int column) { return pack_f16(a[row * 16 + column], a[row * 16 + column + 1]); };
  const auto of_b = [&](int row) { return pack_f16(b[row * 8 + g], b[(row + 1) * 8 + g]); };
  float sum[4] = {1, 2, 3, 4};
  multiply_accumulate_f16(sum, of_a(g, 2 * t), of_a(g + 8, 2 * t), of_a(g, 2 * t + 8), of_a(g + 8, 2 * t + 8),
                          of_b(2 * t), of_b(2 * t + 8));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i] - static_cast<float>(i + 1);
}

TEST(Simt, MultipliesFloat16AsTensorCoresDo) {
  std::minstd_rand random;
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8);
  for (float& value : a) value = static_cast<float>(static_cast<int>(random() % 4097)) - 2048;
  for (float& value : b) value = std::ldexp(static_cast<float>(random() % 16), -24);  // no normal numbers
  run_block(32, half_product_kernel, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0;
      for (int k = 0; k < 16; ++k) expected += a[row * 16 + k] * b[k * 8 + column];
      EXPECT_NEAR(c[row * 8 + column], expected, 1e-6) << row << ", " << column;
    }
  }
}

/// The same of bytes, with a [16, 32] and b [32, 8].
__global__ void byte_product_kernel(const std::int8_t* a, const std::int8_t* b, int* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pack = [](const std::int8_t* from, int apart) {
    std::uint32_t word = 0;
    for (int i = 3; i >= 0; --i) word = word << 8 | static_cast<std::uint8_t>(from[i * apart]);
    return word;
  };
  const auto of_a = [&](int row, int column) { return pack(a + row * 32 + column, 1); };
  const auto of_b = [&](int row) { return pack(b + row * 8 + g, 8); };
  int sum[4] = {1, 2, 3, 4};
  multiply_accumulate(sum, of_a(g, 4 * t), of_a(g + 8, 4 * t), of_a(g, 4 * t + 16), of_a(g + 8, 4 * t + 16),
                      of_b(4 * t), of_b(4 * t + 16));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i] - (i + 1);
}

TEST(Simt, MultipliesBytesAsTensorCoresDo) {
  std::minstd_rand random;
  std::vector<std::int8_t> a(16 * 32), b(32 * 8);
  for (auto* matrix : {&a, &b}) {
    for (std::int8_t& value : *matrix) value = static_cast<std::int8_t>(random() % 256);
  }
  std::vector<int> c(16 * 8);
  run_block(32, byte_product_kernel, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int expected = 0;
      for (int k = 0; k < 32; ++k) expected += a[row * 32 + k] * b[k * 8 + column];
      EXPECT_EQ(c[row * 8 + column], expected) << row << ", " << column;
    }
  }
}

TEST(Simt, MultipliesAsTensorCoresDo) {
  std::minstd_rand random;
  std::vector<__nv_bfloat16> a(16 * 16), b(16 * 8);
  for (auto* matrix : {&a, &b}) {
    for (__nv_bfloat16& value : *matrix) value = static_cast<float>(random() % 15) - 7.0f;
  }
  std::vector<float> c(16 * 8);
  run_block(32, product_kernel, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0;
      for (int k = 0; k < 16; ++k)
        expected += static_cast<float>(a[row * 16 + k]) * static_cast<float>(b[k * 8 + column]);
      EXPECT_EQ(c[row * 8 + column], expected) << row << ", " << column;
    }
  }
}

}  // namespace
}  // namespace gemma
