#include "cli/typed_text.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <vector>

namespace gemma::cli {
namespace {

// The text that lines make up; nothing if more are to come, or if it was complete before the last.
std::optional<std::string> joined(const std::vector<std::string>& lines) {
  TypedText text;
  std::optional<std::string> whole;
  for (const std::string& line : lines) {
    if (whole) return std::nullopt;
    whole = text.push(line);
    EXPECT_EQ(text.is_open(), !whole.has_value());
  }
  return whole;
}

TEST(TypedText, IsOneLineByItself) {
  EXPECT_EQ(joined({"Hello!"}), "Hello!");
  EXPECT_EQ(joined({""}), "");
  EXPECT_EQ(joined({"say \"\"\" to me"}), "say \"\"\" to me");
}

TEST(TypedText, GoesOnBehindABackslash) {
  EXPECT_EQ(joined({"one\\", "two\\", "three"}), "one\ntwo\nthree");
  EXPECT_EQ(joined({"one\\", ""}), "one\n");
  EXPECT_EQ(joined({"one\\"}), std::nullopt);
}

TEST(TypedText, StandsBetweenThreeQuotes) {
  EXPECT_EQ(joined({"\"\"\"one", "two\\", "", "three\"\"\""}), "one\ntwo\\\n\nthree");
  EXPECT_EQ(joined({"\"\"\"", "one", "\"\"\""}), "\none\n");
  EXPECT_EQ(joined({"\"\"\"one\"\"\""}), "one");
  EXPECT_EQ(joined({"\"\"\""}), std::nullopt);
  EXPECT_EQ(joined({"\"\"\"one", "two"}), std::nullopt);
}

TEST(TypedText, StandsBetweenThreeQuotesBehindACommand) {
  EXPECT_EQ(joined({"/system \"\"\"one", "two\"\"\""}), "/system one\ntwo");
  EXPECT_EQ(joined({"/save a\"\"\""}), "/save a\"\"\"");
}

TEST(TypedText, BeginsAnewOnceItIsComplete) {
  TypedText text;
  EXPECT_EQ(text.push("one\\"), std::nullopt);
  EXPECT_EQ(text.push("two"), "one\ntwo");
  EXPECT_EQ(text.push("three"), "three");
  EXPECT_EQ(text.push("\"\"\"four"), std::nullopt);
  text.clear();
  EXPECT_FALSE(text.is_open());
  EXPECT_EQ(text.push("five\\"), std::nullopt);
  EXPECT_EQ(text.push("six"), "five\nsix");
}

TEST(Wish, IsACommandBehindASlash) {
  EXPECT_EQ(understand("/undo").command, "undo");
  EXPECT_EQ(understand("/undo").text, "");
  EXPECT_EQ(understand("/save  my file.json ").command, "save");
  EXPECT_EQ(understand("/save  my file.json ").text, "my file.json");
  EXPECT_EQ(understand("/system one\ntwo").text, "one\ntwo");
}

TEST(Wish, IsAMessageElsewhere) {
  for (const char* text : {"Hello!", " /undo", "1/2", ""}) {
    EXPECT_EQ(understand(text).command, "");
    EXPECT_EQ(understand(text).text, text);
  }
  for (const char* text : {"/usr/bin is a folder", "/* a comment */", "// a comment\nint x;", "/"}) {
    EXPECT_EQ(understand(text).command, "");
    EXPECT_EQ(understand(text).text, text);
  }
  EXPECT_EQ(understand("//usr is a folder").command, "");
  EXPECT_EQ(understand("//usr is a folder").text, "/usr is a folder");
}

TEST(ExpandHome, PutsTheHomeFolderInPlaceOfATilde) {
  ASSERT_EQ(setenv("HOME", "/home/me", 1), 0);
  EXPECT_EQ(expand_home("~/chat.json"), "/home/me/chat.json");
  EXPECT_EQ(expand_home("~"), "/home/me");
  EXPECT_EQ(expand_home("~you/chat.json"), "~you/chat.json");
  EXPECT_EQ(expand_home("a~"), "a~");
}

}  // namespace
}  // namespace gemma::cli
