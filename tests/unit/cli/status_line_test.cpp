#include "cli/status_line.h"

#include <gtest/gtest.h>

namespace gemma::cli {
namespace {

TEST(BatchProgress, FillsTheWidthThatThereIs) {
  const BatchProgress progress{.done = 37, .total = 512, .tokens_per_s = 123.44, .seconds_left = 42};
  EXPECT_EQ(to_text(progress, 60), " 37/512 [#                      ] 123.4 tokens/s, 0:42 left");
  for (int width = 0; width < 200; ++width) {
    const std::string text = to_text(progress, width);
    if (text.find('[') != std::string::npos) {
      EXPECT_LT(text.size(), static_cast<std::size_t>(width));
    }
  }
  EXPECT_EQ(to_text(progress, 20), " 37/512 123.4 tokens/s, 0:42 left");
}

TEST(BatchProgress, SaysNothingOfATimeThatItDoesNotKnow) {
  EXPECT_EQ(to_text({.done = 0, .total = 0, .tokens_per_s = 0, .seconds_left = -1}, 30),
            "0/0 [##########] 0.0 tokens/s");
}

TEST(Time, IsWrittenAsOnAClock) {
  EXPECT_EQ(in_time(0.4), "0:00");
  EXPECT_EQ(in_time(59.6), "1:00");
  EXPECT_EQ(in_time(3723), "1:02:03");
}

}  // namespace
}  // namespace gemma::cli
