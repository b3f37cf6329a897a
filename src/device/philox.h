#pragma once

#include <cstdint>

#include "device/host_device.h"

namespace gemma {

struct PhiloxWords {
  std::uint32_t x, y, z, w;
};

/// Philox4x32-10, a counter-based random number generator: four words that depend on nothing but counter and key.
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
GEMMA_HOST_DEVICE constexpr PhiloxWords philox4x32(PhiloxWords counter, std::uint64_t key) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter.x;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter.z;
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter.y ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter.w ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// The random word that draws the token after `position`.
GEMMA_HOST_DEVICE constexpr std::uint32_t random_word(std::uint64_t seed, int position) {
  return philox4x32({static_cast<std::uint32_t>(position), 0, 0, 0}, seed).x;
}

/// The same as a number: uniform in [0, 1), a multiple of 2^-32.
GEMMA_HOST_DEVICE constexpr double uniform_random(std::uint64_t seed, int position) {
  return random_word(seed, position) * 0x1p-32;
}

}  // namespace gemma
