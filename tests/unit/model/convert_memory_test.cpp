#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "model/convert.h"
#include "model/input_file.h"
#include "support/hf_directory.h"
#include "support/small_model.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

// Memory that is not backed by a file, now.
std::uint64_t anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return 1024 * std::stoull(line.substr(8));
  }
  return 0;
}

TEST(Convert, TakesAFixedAmountOfMemoryHoweverLargeATensorIs) {
  const TemporaryDirectory directory;
  Config config = small_config();
  config.vocab_size = 4096;
  const std::string tokenizer = read_small_file(GEMMA_SOURCE_DIR "/tests/golden/tokenizer.model", 1 << 20);
  const HfDirectory source = hf_directory(exact_model(config, tokenizer), DType::kF32);
  constexpr int kVocab = 2 << 20;
  constexpr std::uint64_t kSourceBytes = std::uint64_t{4} * kVocab * 48;  // 384 MiB
  source.write_with_sparse_embedding(directory / "source", kVocab);

  const std::uint64_t before = anonymous_bytes();
  ASSERT_GT(before, 0u);
  std::uint64_t highest = before;
  convert({.source = directory / "source",
           .output = directory / "out.gemma",
           .progress = [&](std::uint64_t, std::uint64_t) {
             highest = std::max(highest, anonymous_bytes());
             return true;
           }});
  EXPECT_GT(std::filesystem::file_size(directory / "out.gemma"), kSourceBytes / 2);
  // Four blocks of 16 MiB and what they become, 8 MiB each: 96 MiB, and a third for the allocator.
  EXPECT_LT(highest - before, std::uint64_t{128} << 20);
}

}  // namespace
}  // namespace gemma
