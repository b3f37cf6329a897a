#include "cli/partial_file.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <string>

#include "cli/result_line.h"
#include "support/error_text.h"
#include "support/temporary_directory.h"

namespace gemma::cli {
namespace {

using testing::HasSubstr;

const Json kHeader = {{"model", 1}, {"seed", 2}};
constexpr std::uint64_t kPrompts = 6;

std::string line_of(std::uint64_t index) { return error_line(index, "id", "no answer " + std::to_string(index)); }

class Partial : public testing::Test {
 protected:
  std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  void set_bytes(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  /// A file with these results.
  void make(std::initializer_list<std::uint64_t> indices) const {
    PartialFile file(path_);
    file.begin(kHeader);
    file.restore({}, kPrompts);
    for (const std::uint64_t index : indices) file.append(index, line_of(index));
  }

  static std::string joined(const PartialFile& file) {
    std::string text;
    file.copy_in_order([&](std::string_view line) {
      text += line;
      return true;
    });
    return text;
  }

  TemporaryDirectory folder_;
  std::filesystem::path path_ = folder_ / "out.partial";
};

TEST_F(Partial, KeepsResultsInAnyOrderAndGivesThemInThatOfTheInput) {
  make({3, 0, 5});
  PartialFile file(path_);
  ASSERT_EQ(file.header(), kHeader);
  const PartialFile::Restored restored = file.restore({}, kPrompts);
  EXPECT_EQ(restored.results, 3u);
  EXPECT_EQ(restored.failed, 3u);
  EXPECT_EQ(restored.damaged, 0u);
  EXPECT_TRUE(file.has(0) && !file.has(1) && file.has(3) && !file.is_complete());
  for (const std::uint64_t index : {4, 1, 2}) file.append(index, line_of(index));
  EXPECT_TRUE(file.is_complete());
  std::string expected;
  for (std::uint64_t index = 0; index < kPrompts; ++index) expected += line_of(index) + "\n";
  EXPECT_EQ(joined(file), expected);
}

TEST_F(Partial, CutAnywhereLosesOnlyTheResultThatWasCut) {
  make({});
  const std::size_t header = bytes().size();
  make({2, 4});
  const std::string whole = bytes();
  const std::size_t first = whole.find('\n', header) + 1;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    set_bytes(whole.substr(0, size));
    PartialFile file(path_);
    ASSERT_EQ(file.header().has_value(), size >= header) << size;
    if (!file.header()) file.begin(kHeader);
    EXPECT_EQ(file.restore({}, kPrompts).results, size < first ? 0u : 1u) << size;
    if (!file.has(2)) file.append(2, line_of(2));
    file.append(4, line_of(4));
    ASSERT_EQ(bytes(), whole) << size;
  }
}

TEST_F(Partial, DoesNotBelieveALineThatIsDamagedButBelievesTheOthers) {
  make({2, 4, 1});
  const std::string whole = bytes();
  for (std::size_t at = whole.find("{\"index\":4") - 17; whole[at] != '\n'; ++at) {
    std::string damaged = whole;
    damaged[at] = damaged[at] == '\0' ? 'x' : '\0';
    set_bytes(damaged);
    PartialFile file(path_);
    const PartialFile::Restored restored = file.restore({}, kPrompts);
    EXPECT_EQ(restored.results, 2u) << at;
    EXPECT_EQ(restored.damaged, 1u) << at;
    EXPECT_TRUE(file.has(2) && !file.has(4) && file.has(1));
  }
}

TEST_F(Partial, PassesOverResultsOfPromptsThatTheRunDoesNotHave) {
  make({1, 5});
  PartialFile file(path_);
  const PartialFile::Restored restored = file.restore({.number = 2, .count = 2}, 5);
  EXPECT_EQ(restored.results, 1u);
  EXPECT_EQ(restored.damaged, 1u);
}

TEST_F(Partial, IsNotTakenFromAnotherProcess) {
  const PartialFile file(path_);
  EXPECT_THAT(error_text([&] { PartialFile second(path_); }), HasSubstr("another gemma-run"));
}

TEST_F(Partial, LeavesNothingBehindWhenNothingWasWritten) {
  { const PartialFile file(path_); }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(Partial, RefusesAFileThatIsNotItsOwn) {
  for (const char* text : {"a diary\n", "{}\n", "0123456789abcdef {\"gemma-run batch\":{}}\n", "no line break"}) {
    set_bytes(text);
    EXPECT_THAT(error_text([&] { PartialFile file(path_); }), HasSubstr("gemma-run has not made it")) << text;
    EXPECT_EQ(bytes(), text);
  }
}

TEST_F(Partial, IsAsBeforeWhenAResultDoesNotFit) {
  std::signal(SIGXFSZ, SIG_IGN);
  make({0});
  const std::string before = bytes();
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  {
    PartialFile file(path_);
    file.restore({}, kPrompts);
    const rlimit small{.rlim_cur = before.size() + 10, .rlim_max = old.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    EXPECT_THAT(error_text([&] { file.append(1, line_of(1)); }), HasSubstr("File too large"));
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    EXPECT_FALSE(file.has(1));
  }
  EXPECT_EQ(bytes(), before);
}

TEST_F(Partial, NoticesAResultThatIsDamagedWhileItIsOpen) {
  make({0});
  PartialFile file(path_);
  file.restore({}, 1);
  std::string damaged = bytes();
  damaged[damaged.size() - 5] ^= 1;
  set_bytes(damaged);
  EXPECT_THAT(error_text([&] { joined(file); }), HasSubstr("damaged"));
}

}  // namespace
}  // namespace gemma::cli
