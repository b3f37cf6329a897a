#include "cli/version.h"

// clang-format off: this must come before Highway's headers.
#include "device/cpu/simd_targets.h"
// clang-format on

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cstdint>

namespace gemma::cli {
namespace {

std::string name_of(std::int64_t target) { return target == HWY_AVX3 ? "AVX-512" : hwy::TargetName(target); }

// Highway's targets are bits; the lower, the better. Plain C++ goes without saying.
std::string names_of(std::int64_t targets) {
  targets &= ~(HWY_SCALAR | HWY_EMU128);
  std::string names;
  for (; targets != 0; targets &= targets - 1) {
    names = name_of(targets & -targets) + (names.empty() ? "" : ", ") + names;
  }
  return names;
}

}  // namespace

std::string program_version() { return GEMMA_VERSION; }

std::string version_text() {
  const std::int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return std::string("gemma-run ") + GEMMA_VERSION + "\n" +  //
         "CPU:  " + names_of(HWY_TARGETS) + " (here: " + name_of(usable & -usable) + ")\n" +
         "CUDA: " GEMMA_CUDA_VERSION;
}

}  // namespace gemma::cli
