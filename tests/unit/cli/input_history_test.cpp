#include "cli/input_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>

#include "support/temporary_directory.h"

namespace gemma::cli {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class InputHistoryTest : public testing::Test {
 protected:
  std::vector<std::string> entries() const { return InputHistory(file()).entries(); }
  std::filesystem::path file() const { return folder_ / "state" / "gemma-run" / "chat_history"; }

  TemporaryDirectory folder_;
};

TEST_F(InputHistoryTest, KeepsEntriesOfSeveralLinesForTheNextRun) {
  InputHistory history(file());
  history.add("Hello!");
  history.add("one\ntwo \\n three\\\n");
  EXPECT_THAT(entries(), ElementsAre("Hello!", "one\ntwo \\n three\\\n"));
}

TEST_F(InputHistoryTest, IsForItsOwnersEyesAlone) {
  InputHistory(file()).add("secret");
  EXPECT_EQ(std::filesystem::status(file()).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

TEST_F(InputHistoryTest, LeavesOutRepetitionsAndVeryLongEntries) {
  InputHistory history(file());
  history.add("one");
  history.add("one");
  history.add(std::string(InputHistory::kLongestEntry + 1, 'x'));
  history.add("two");
  history.add("one");
  EXPECT_THAT(entries(), ElementsAre("one", "two", "one"));
}

TEST_F(InputHistoryTest, HasRoomForTheEntriesOfSeveralChats) {
  InputHistory first(file());
  InputHistory second(file());
  first.add("one");
  second.add("two");
  first.add("three");
  EXPECT_THAT(entries(), ElementsAre("one", "two", "three"));
}

TEST_F(InputHistoryTest, ForgetsTheOldest) {
  InputHistory history(file());
  for (std::size_t i = 0; i < 2 * InputHistory::kMostEntries; ++i) history.add(std::to_string(i));
  const std::vector<std::string> kept = entries();
  EXPECT_EQ(kept.size(), InputHistory::kMostEntries);
  EXPECT_EQ(kept.front(), std::to_string(InputHistory::kMostEntries));
  std::ifstream cut(file());
  const auto lines = std::count(std::istreambuf_iterator<char>(cut), {}, '\n');
  EXPECT_EQ(static_cast<std::size_t>(lines), InputHistory::kMostEntries) << "the file is cut down, too";
}

TEST_F(InputHistoryTest, PassesOverWhatIsNotText) {
  InputHistory(file()).add("one");
  std::ofstream(file(), std::ios::app) << "\xFF\xFE\ntwo\nthree\\";
  EXPECT_THAT(entries(), ElementsAre("one", "two", "three\\"));
}

TEST_F(InputHistoryTest, DoesWithoutAFile) {
  InputHistory none("");
  none.add("one");
  EXPECT_THAT(none.entries(), ElementsAre("one"));
  InputHistory impossible("/proc/nowhere/chat_history");
  impossible.add("one");
  EXPECT_THAT(impossible.entries(), ElementsAre("one"));
  EXPECT_THAT(InputHistory(folder_.path()).entries(), IsEmpty());
}

TEST(HistoryFile, StandsWhereTheStateOfProgramsBelongs) {
  ASSERT_EQ(setenv("HOME", "/home/me", 1), 0);
  ASSERT_EQ(setenv("XDG_STATE_HOME", "/state", 1), 0);
  EXPECT_EQ(default_history_file(), "/state/gemma-run/chat_history");
  ASSERT_EQ(setenv("XDG_STATE_HOME", "relative", 1), 0);
  EXPECT_EQ(default_history_file(), "/home/me/.local/state/gemma-run/chat_history");
  ASSERT_EQ(unsetenv("XDG_STATE_HOME"), 0);
  EXPECT_EQ(default_history_file(), "/home/me/.local/state/gemma-run/chat_history");
  ASSERT_EQ(unsetenv("HOME"), 0);
  EXPECT_EQ(default_history_file(), "");
}

}  // namespace
}  // namespace gemma::cli
