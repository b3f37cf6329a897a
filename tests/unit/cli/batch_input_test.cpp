#include "cli/batch_input.h"

#include <gmock/gmock.h>

#include <fstream>
#include <string>
#include <vector>

#include "cli/command.h"
#include "support/temporary_directory.h"

namespace gemma::cli {
namespace {

using testing::ElementsAre;

class Lines : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& text) {
    std::ofstream(folder_ / "input.txt", std::ios::binary) << text;
    return folder_ / "input.txt";
  }

  std::vector<std::string> prompts(const std::string& text) {
    const InputFile file(write(text));
    PromptReader reader(file);
    std::vector<std::string> found;
    Line line;
    for (std::uint64_t index = 0; reader.next(line, index);) {
      EXPECT_EQ(index, found.size());
      found.emplace_back(line.text);
    }
    return found;
  }

  TemporaryDirectory folder_;
};

TEST_F(Lines, EndInEitherKindOfLineBreakOrInNone) {
  EXPECT_THAT(prompts("a\nb\r\nc"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(prompts("a\n"), ElementsAre("a"));
  EXPECT_THAT(prompts("a\rb\n"), ElementsAre("a\rb"));
}

TEST_F(Lines, ThatAreBlankAreNoPrompts) {
  EXPECT_THAT(prompts("\n\na\n \t\r\n b \n\n"), ElementsAre("a", " b "));
  EXPECT_THAT(prompts(""), ElementsAre());
  EXPECT_THAT(prompts("\n"), ElementsAre());
}

TEST_F(Lines, LoseAByteOrderMarkInFrontOfTheFirstOnly) {
  EXPECT_THAT(prompts("\xEF\xBB\xBF"
                      "a\n\xEF\xBB\xBF"
                      "b\n"),
              ElementsAre("a",
                          "\xEF\xBB\xBF"
                          "b"));
}

TEST_F(Lines, AreTheSameInBlocksOfAnySize) {
  std::string text;
  for (int i = 0; i < 60; ++i)
    text += std::string(static_cast<std::size_t>(i * 7 % 23), 'x') + std::to_string(i) + "\n";
  const InputFile file(write(text));
  for (std::size_t block = 1; block < 70; ++block) {
    LineReader reader(file, 100, block);
    std::string joined;
    Line line;
    while (reader.next(line)) {
      EXPECT_EQ(line.offset, joined.size());
      EXPECT_TRUE(line.is_complete && !line.is_too_long);
      joined.append(line.text).append("\n");
      EXPECT_EQ(reader.bytes(), joined.size());
    }
    ASSERT_EQ(joined, text) << "in blocks of " << block;
  }
}

TEST_F(Lines, ThatAreTooLongArePassedOver) {
  const InputFile file(write("ab\n" + std::string(50, 'x') + "\n12345678\n" + std::string(9, 'y')));
  for (std::size_t block = 1; block < 70; ++block) {
    LineReader reader(file, 8, block);
    Line line;
    ASSERT_TRUE(reader.next(line));
    EXPECT_EQ(line.text, "ab");
    ASSERT_TRUE(reader.next(line));
    EXPECT_TRUE(line.is_too_long);
    EXPECT_EQ(line.text, "xxxxxxxx");
    EXPECT_EQ(line.offset, 3u);
    ASSERT_TRUE(reader.next(line));
    EXPECT_FALSE(line.is_too_long);
    EXPECT_EQ(line.text, "12345678");
    EXPECT_EQ(line.offset, 54u);
    ASSERT_TRUE(reader.next(line));
    EXPECT_TRUE(line.is_too_long && !line.is_complete);
    EXPECT_FALSE(reader.next(line));
    EXPECT_EQ(reader.bytes(), file.size());
  }
}

TEST_F(Lines, AreCountedAndHashedByASurvey) {
  const InputSurvey survey = survey_input(InputFile(write("a\n\nb\n")), [](std::uint64_t) {});
  EXPECT_EQ(survey.bytes, 5u);
  EXPECT_EQ(survey.prompts, 2u);
  const InputSurvey other = survey_input(InputFile(write("a\n\nc\n")), [](std::uint64_t) {});
  EXPECT_NE(survey.hash, other.hash);
}

TEST(InputFormat, FollowsTheEndingOfTheName) {
  EXPECT_EQ(input_format("a.txt"), InputFormat::kText);
  EXPECT_EQ(input_format("a.JSONL"), InputFormat::kJsonLines);
  EXPECT_THROW(input_format("a.csv"), UsageError);
  EXPECT_THROW(input_format("txt"), UsageError);
}

}  // namespace
}  // namespace gemma::cli
