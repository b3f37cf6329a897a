#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "model/input_file.h"
#include "model/model_file.h"
#include "support/hf_directory.h"
#include "support/small_model.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::MatchesRegex;

// Runs gemma-convert with its output in files of a directory.
class Tool {
 public:
  explicit Tool(Config config = small_config()) {
    config.vocab_size = 4096;
    const std::string tokenizer = read_small_file(GEMMA_SOURCE_DIR "/tests/golden/tokenizer.model", 1 << 20);
    hf_ = hf_directory(exact_model(config, tokenizer), DType::kF32);
    hf_.write(source());
    std::filesystem::create_directory(folder());
  }

  std::string source() const { return (directory_ / "source").string(); }
  std::filesystem::path folder() const { return directory_ / "out"; }  ///< for what is made
  std::string output() const { return (folder() / "model.gemma").string(); }

  /// 768 MiB of source, which take a second or so.
  void make_source_large() {
    std::filesystem::remove_all(source());
    hf_.write_with_sparse_embedding(source(), 1 << 22);
  }

  /// @param before  shell commands that come first.
  /// @return the exit code.
  int run(const std::string& arguments, const std::string& before = "") const {
    const std::string command = before + "exec '" GEMMA_CONVERT "' " + arguments + " >'" +
                                (directory_ / "stdout").string() + "' 2>'" + (directory_ / "stderr").string() +
                                "' </dev/null";
    const int status = std::system(("sh -c \"" + command + "\"").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string standard_output() const { return read_small_file(directory_ / "stdout", 1 << 20); }
  std::string standard_error() const { return read_small_file(directory_ / "stderr", 1 << 20); }

 private:
  TemporaryDirectory directory_;
  HfDirectory hf_;
};

TEST(ConvertTool, MakesAModelAndSaysSoOnStandardError) {
  const Tool tool;
  ASSERT_EQ(tool.run(tool.source() + " -o " + tool.output()), 0) << tool.standard_error();
  EXPECT_EQ(load_model(tool.output()).config.layer_count(), 3);
  EXPECT_FALSE(load_model(tool.output()).defaults.is_chat);
  EXPECT_THAT(tool.standard_output(), IsEmpty());
  EXPECT_THAT(tool.standard_error(), HasSubstr("3 layers (2 local with a window of 7, 1 global)"));
  EXPECT_THAT(tool.standard_error(), Not(HasSubstr("\r")));

  ASSERT_EQ(tool.run(tool.source() + " -o " + tool.output() + " --quiet --chat"), 0);
  EXPECT_TRUE(load_model(tool.output()).defaults.is_chat);
  EXPECT_THAT(tool.standard_error(), IsEmpty());
}

TEST(ConvertTool, MakesTheBuiltInDemoModelAgainFromTheOneInBf16) {
  const Tool tool;
  const std::string output = (tool.folder() / "demo.gemma").string();
  ASSERT_EQ(tool.run("'" GEMMA_SOURCE_DIR "/tests/golden/demo-bf16.gemma' --type q8 -o " + output), 0)
      << tool.standard_error();
  const auto contents = [](const std::filesystem::path& path) { return read_small_file(path, 100 << 20); };
  EXPECT_TRUE(contents(output) == contents(GEMMA_SOURCE_DIR "/models/demo.gemma"));
}

TEST(ConvertTool, QuantisesTheEmbeddingTo8BitsUnlessToldOtherwise) {
  const Tool tool(small_config(32));
  const auto types_for = [&](const std::string& options) {
    EXPECT_EQ(tool.run(tool.source() + " -o " + tool.output() + options), 0) << tool.standard_error();
    return load_model(tool.output()).weights.types();
  };
  EXPECT_EQ(types_for(" --type bf16"), WeightTypes{});
  EXPECT_EQ(types_for(" --type q8"), (WeightTypes{WeightType::kQ8, WeightType::kQ8}));
  EXPECT_EQ(types_for(" --type q4"), (WeightTypes{WeightType::kQ4, WeightType::kQ8}));
  EXPECT_THAT(tool.standard_error(), HasSubstr("q4 with the embedding in q8"));
  EXPECT_EQ(types_for(" --type q4 --embed-type bf16"), (WeightTypes{WeightType::kQ4, WeightType::kBf16}));
}

TEST(ConvertTool, CalibratesOnATextWithTheModelItself) {
  const Tool tool(small_config(32));
  const std::string text = GEMMA_SOURCE_DIR "/tests/golden/calibration.txt";
  const std::string with_text = " --type q4 --calibrate " + text;
  EXPECT_EQ(tool.run(tool.source() + " -o " + tool.output() + with_text), 1);
  EXPECT_THAT(tool.standard_error(), HasSubstr("it needs a .gemma file as its source. Make one first"));

  const std::string bf16 = (tool.folder() / "bf16.gemma").string();
  ASSERT_EQ(tool.run(tool.source() + " -o " + bf16), 0);
  EXPECT_EQ(tool.run(bf16 + " -o " + tool.output() + " --calibrate " + text), 2);
  ASSERT_EQ(tool.run(bf16 + " -o " + tool.output() + " --type q4"), 0);
  const std::string plain = read_small_file(tool.output(), 10 << 20);
  ASSERT_EQ(tool.run(bf16 + " -o " + tool.output() + with_text), 0) << tool.standard_error();
  EXPECT_THAT(tool.standard_error(), HasSubstr("Calibrating on "));
  EXPECT_FALSE(read_small_file(tool.output(), 10 << 20) == plain);
  ASSERT_EQ(tool.run(bf16 + " -o " + tool.output() + " --type q4 --calibrate /no/such/text"), 1);
}

TEST(ConvertTool, TellsWrongUsageFromFailure) {
  const Tool tool;
  for (const std::string& wrong :
       {std::string(), tool.source(), tool.source() + " -o x --type q9", tool.source() + " -o x --chat --raw",
        tool.source() + " -o x --nonsense", tool.source() + " -o x --calibrate y"}) {
    EXPECT_EQ(tool.run(wrong), 2) << wrong;
    EXPECT_THAT(tool.standard_error(), MatchesRegex("gemma-convert: [^\n]+ \\(see gemma-convert --help\\)\n")) << wrong;
  }
  EXPECT_EQ(tool.run("--help"), 0);
  EXPECT_THAT(tool.standard_output(), HasSubstr("--type"));
  EXPECT_EQ(tool.run("--version"), 0);
  EXPECT_THAT(tool.standard_output(), MatchesRegex("gemma-convert [0-9.]+\n"));
  EXPECT_EQ(tool.run("/no/such/directory -o " + tool.output()), 1);
  EXPECT_THAT(tool.standard_error(), HasSubstr("gemma-convert: there is no directory or file '/no/such/directory'"));
  EXPECT_EQ(tool.run(tool.source() + " -o /no/such/folder/model.gemma"), 1);
  EXPECT_TRUE(std::filesystem::is_empty(tool.folder()));
}

TEST(ConvertTool, LeavesNothingWhenTheDiskIsFull) {
  const Tool tool;
  EXPECT_EQ(tool.run(tool.source() + " -o " + tool.output(), "ulimit -f 100; "), 1);
  EXPECT_THAT(tool.standard_error(), HasSubstr("cannot write"));
  EXPECT_TRUE(std::filesystem::is_empty(tool.folder()));
}

TEST(ConvertTool, LeavesNothingWhenInterrupted) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Tool tool;
    tool.make_source_large();
    const pid_t child = ::fork();
    if (child == 0) {
      ::execl(GEMMA_CONVERT, GEMMA_CONVERT, tool.source().c_str(), "-o", tool.output().c_str(), "--quiet", nullptr);
      ::_exit(127);
    }
    while (std::filesystem::is_empty(tool.folder())) {  // until it has begun to write
      ASSERT_EQ(::waitpid(child, nullptr, WNOHANG), 0);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ASSERT_EQ(::kill(child, signal), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 130);
    EXPECT_TRUE(std::filesystem::is_empty(tool.folder()));
  }
}

}  // namespace
}  // namespace gemma
