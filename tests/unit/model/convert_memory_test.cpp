#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>

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
  Config config = small_config(32);
  config.vocab_size = 4096;
  const std::string tokenizer = read_small_file(GEMMA_SOURCE_DIR "/tests/golden/tokenizer.model", 1 << 20);
  const HfDirectory source = hf_directory(exact_model(config, tokenizer), DType::kF32);
  constexpr int kVocab = 2 << 20;
  constexpr std::uint64_t kSourceBytes = std::uint64_t{4} * kVocab * 64;  // 512 MiB
  source.write_with_sparse_embedding(directory / "source", kVocab);

  for (const WeightType type : {WeightType::kBf16, WeightType::kQ8}) {
    const std::uint64_t before = anonymous_bytes();
    ASSERT_GT(before, 0u);
    std::uint64_t highest = before;
    convert({.source = directory / "source",
             .output = directory / "out.gemma",
             .types = {type, type},
             .progress = [&](std::uint64_t, std::uint64_t) {
               highest = std::max(highest, anonymous_bytes());
               return true;
             }});
    EXPECT_GT(std::filesystem::file_size(directory / "out.gemma"), kSourceBytes / 4);
    // A block for each core and one more: 4 MiB of source, as much of float32, and what they become, 2 MiB; a third
    // for the allocator.
    const std::uint64_t blocks = std::clamp(1 + std::thread::hardware_concurrency(), 3u, 65u);
    EXPECT_LT(highest - before, blocks * (std::uint64_t{10} << 20) * 4 / 3) << name_of(type);
  }
}

}  // namespace
}  // namespace gemma
