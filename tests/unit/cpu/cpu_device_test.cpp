#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "device/device.h"
#include "gemma/error.h"
#include "support/small_model.h"

namespace gemma {
namespace {

CpuOptions small_options() {
  CpuOptions options;
  options.threads = 2;
  options.max_rows = 8;
  options.kv = {.type = KvType::kF32, .window = 7, .rings = 1, .ring_slots = 64, .pages = 1};
  return options;
}

std::string refusal(const CpuOptions& options) {
  try {
    make_cpu_device(random_model(small_config(), 1), options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CpuDevice, RefusesACacheThatDoesNotFitWithTheNumbers) {
  CpuOptions options = small_options();
  options.kv.pages = 2000000000;  // 2 TiB times 16 KiB
  EXPECT_THAT(refusal(options), testing::AllOf(testing::HasSubstr("GiB"), testing::HasSubstr("--context"),
                                               testing::HasSubstr("available")));
}

TEST(CpuDevice, RefusesWorkSpaceThatDoesNotFit) {
  CpuOptions options = small_options();
  options.max_rows = 2000000000;
  EXPECT_THAT(refusal(options), testing::HasSubstr("--chunk"));
}

TEST(CpuDevice, RefusesALayoutThatCannotBe) {
  CpuOptions options = small_options();
  options.kv.ring_slots = 65;
  EXPECT_THAT(refusal(options), testing::HasSubstr("65 slots"));
  options = small_options();
  options.kv.window = 0;
  EXPECT_THAT(refusal(options), testing::HasSubstr("window"));
  options = small_options();
  options.max_rows = 0;
  EXPECT_THAT(refusal(options), testing::HasSubstr("row"));
}

TEST(CpuDevice, SetsAsideALargeCacheWithoutTakingTheMemory) {
  CpuOptions options = small_options();
  options.kv.pages = 10000;  // 320 MiB; an eager cache would make this test slow and fail where memory is short
  EXPECT_EQ(make_cpu_device(random_model(small_config(), 1), options)->kv_layout().pages, 10000);
}

TEST(CpuDevice, DescribesItself) {
  EXPECT_THAT(make_cpu_device(random_model(small_config(), 1), small_options())->description(),
              testing::MatchesRegex("CPU, .+, 2 threads"));
}

}  // namespace
}  // namespace gemma
