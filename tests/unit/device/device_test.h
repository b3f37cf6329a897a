#pragma once

#include <gtest/gtest.h>

#include <string>

#include "support/devices.h"
#include "support/reader.h"

namespace gemma {

/// Base of all tests that run on every kind of device.
class DeviceTest : public ::testing::TestWithParam<DeviceKind> {};

/// Whether no logit is further from the naive reference than the kind of device may be.
/// @param allowance  multiplies the tolerance where a test's model multiplies the errors.
::testing::AssertionResult is_close(const DeviceKind& kind, const Logits& found, const naive::Vectors& expected,
                                    double allowance = 1);

inline std::string name_of_kind(const ::testing::TestParamInfo<DeviceKind>& info) { return info.param.name; }

}  // namespace gemma

/// Runs a suite of DeviceTest on every kind of device.
#define GEMMA_ON_ALL_DEVICES(suite) \
  INSTANTIATE_TEST_SUITE_P(On, suite, ::testing::ValuesIn(::gemma::device_kinds()), ::gemma::name_of_kind)
