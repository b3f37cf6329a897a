// The tests that need a GPU: without one they are skipped, all at once.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "device/device.h"

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;  // what CTest is told to take for skipped
  ::testing::InitGoogleTest(&argc, argv);
  std::string why_not;
  if (!GTEST_FLAG_GET(list_tests) && !gemma::has_cuda_device(&why_not)) {
    std::printf("no GPU: skipped (%s)\n", why_not.c_str());
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
