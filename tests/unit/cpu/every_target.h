#pragma once

#include <gtest/gtest.h>

#include <cctype>
#include <cstdint>
#include <string>

#include "device/cpu/simd_targets.h"

namespace gemma {

/// Base of tests that run with the kernels of every instruction set that this machine has.
class EveryTarget : public ::testing::TestWithParam<std::int64_t> {
 protected:
  EveryTarget() {
    hwy::SetSupportedTargetsForTest(GetParam());
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~EveryTarget() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

inline std::string name_of_target(const ::testing::TestParamInfo<std::int64_t>& info) {
  std::string name = hwy::TargetName(info.param);
  std::erase_if(name, [](unsigned char c) { return !std::isalnum(c); });
  return name;
}

}  // namespace gemma

/// Runs a suite of EveryTarget on every instruction set.
#define GEMMA_ON_EVERY_TARGET(suite)                                                              \
  INSTANTIATE_TEST_SUITE_P(On, suite, ::testing::ValuesIn(::hwy::SupportedAndGeneratedTargets()), \
                           ::gemma::name_of_target)
