#include "cli/terminal.h"

#include <gtest/gtest.h>

namespace gemma::cli {
namespace {

TEST(Harmless, LeavesTextLineBreaksAndTabsAsTheyAre) {
  const std::string text = "a\tb\nc \xC3\xA4 \xE2\x82\xAC \xF0\x9F\x90\xB6 \\x1B";
  EXPECT_EQ(harmless(text), text);
}

TEST(Harmless, WritesOutWhatATerminalWouldObey) {
  EXPECT_EQ(harmless("\x1B[31mred"), "\\x1B[31mred");
  EXPECT_EQ(harmless("\a\b\r\x7F"), "\\x07\\x08\\x0D\\x7F");
  EXPECT_EQ(harmless(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(harmless("\xC2\x9B"
                     "31m"),
            "\\x9B31m");  // U+009B begins escape sequences, too
  EXPECT_EQ(harmless("\xC2\xA0"), "\xC2\xA0");
}

}  // namespace
}  // namespace gemma::cli
