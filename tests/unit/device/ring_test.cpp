// The ring of a local layer under everything that has broken it in other engines.
#include <gtest/gtest.h>

#include <vector>

#include "gemma/error.h"
#include "support/reader.h"
#include "support/small_model.h"
#include "unit/device/device_test.h"

namespace gemma {
namespace {

// Only local layers, stacked: what one layer forgets, the next cannot repair.
Model local_model(const DeviceKind& kind, int window) {
  Config config = small_config(kind.width_multiple);
  config.window = window;
  config.layers = {LayerKind::kLocal, LayerKind::kLocal, LayerKind::kLocal};
  return random_model(config, 31);
}

class RingCache : public DeviceTest {
 protected:
  naive::Vectors naive_logits(const Model& model, std::span<const int> tokens) const {
    naive::Departures departures;
    departures.cache = GetParam().cache;
    return naive::forward(model, tokens, departures).logits;
  }

  static std::vector<int> text(const Model& model, int length) {
    return random_tokens(length, model.config.vocab_size, 32);
  }
};
GEMMA_ON_ALL_DEVICES(RingCache);

// pytorch/executorch #20346, Lightning-AI/litgpt #2215: a prompt longer than the window in one call overwrote keys that
// its own earlier rows still had to see, or did not fit the ring at all.
TEST_P(RingCache, TakesAChunkLongerThanTheWindowAndThanTheWholeRing) {
  for (int window : {1, 2, 7, 64, 100}) {
    const Model model = local_model(GetParam(), window);
    const int slots = ring_slots(window, 1024);
    const std::vector<int> tokens = text(model, 2 * slots + 9);
    const naive::Vectors expected = naive_logits(model, tokens);
    for (int chunk : {window + 1, slots - 1, slots, slots + 1, 2 * slots + 9}) {
      ReaderOptions options;
      options.max_rows = chunk;
      Reader reader(GetParam(), model, options);
      ASSERT_EQ(reader.device().kv_layout().ring_slots, slots);
      const Logits logits = reader.read(reader.cache().create(1024), tokens, chunk);
      EXPECT_TRUE(is_close(GetParam(), logits, expected)) << "window " << window << ", chunk " << chunk;
    }
  }
}

// lucasnewman/mlxcel #678: when a chunk continued a ring that was full, its first rows lost the part of their window
// that the chunk's own keys had replaced, and rows whose whole tile was masked became NaN.
TEST_P(RingCache, KeepsTheWindowOfTheFirstRowsOfAChunkThatContinuesAFullRing) {
  for (int window : {7, 64, 100}) {
    const Model model = local_model(GetParam(), window);
    const int slots = ring_slots(window, 1024);
    const std::vector<int> tokens = text(model, 3 * slots + 1);
    const naive::Vectors expected = naive_logits(model, tokens);
    for (int already_read : {window, slots - 1, slots, slots + 13}) {
      ReaderOptions options;
      options.max_rows = 2 * slots;
      Reader reader(GetParam(), model, options);
      const KvCache::Id sequence = reader.cache().create(1024);
      Logits logits = reader.read(sequence, std::span(tokens).first(already_read), slots);
      append(logits, reader.read(sequence, std::span(tokens).subspan(already_read), window + slots / 2));
      EXPECT_TRUE(is_close(GetParam(), logits, expected)) << "window " << window << ", " << already_read << " first";
    }
  }
}

// EricLBuehler/mistral.rs #2333: a ring that grows with the text was too small for a first prompt longer than itself.
// Ours is as small as the longest text allows, and then has no slack at all.
TEST_P(RingCache, HoldsAFirstPromptThatFillsARingCutDownToTheContext) {
  const Model model = local_model(GetParam(), 200);
  for (int context : {1, 63, 64, 65, 150, 256, 300}) {
    const std::vector<int> tokens = text(model, context);
    const naive::Vectors expected = naive_logits(model, tokens);
    for (int chunk : {context, (context + 1) / 2}) {
      EXPECT_TRUE(is_close(GetParam(), read_alone(GetParam(), model, tokens, chunk), expected))
          << "context " << context << ", chunk " << chunk;
    }
  }
}

TEST_P(RingCache, DecodesFarPastTheWindowAfterAChunkedPrompt) {
  for (int window : {1, 7, 65}) {
    const Model model = local_model(GetParam(), window);
    const int prompt = ring_slots(window, 1024) + 17;
    const std::vector<int> tokens = text(model, 4 * ring_slots(window, 1024));
    Reader reader(GetParam(), model);
    const KvCache::Id sequence = reader.cache().create(1024);
    Logits logits = reader.read(sequence, std::span(tokens).first(prompt), 50);
    append(logits, reader.read(sequence, std::span(tokens).subspan(prompt), 1, RowKind::kGenerated));
    EXPECT_TRUE(is_close(GetParam(), logits, naive_logits(model, tokens))) << "window " << window;
  }
}

// JustVugg/colibri #830: a prefix was read again from a ring that had since wrapped, so its keys were those of later
// positions.
TEST_P(RingCache, ReusesAPrefixThatHasLeftTheRingOnlyThroughACheckpoint) {
  const Model model = local_model(GetParam(), 20);
  const int slots = ring_slots(20, 1024);
  const std::vector<int> prefix = text(model, 90);
  const std::vector<int> first = random_tokens(2 * slots, model.config.vocab_size, 40);
  const std::vector<int> second = random_tokens(30, model.config.vocab_size, 41);
  std::vector<int> whole = prefix;
  whole.insert(whole.end(), second.begin(), second.end());

  ReaderOptions options;
  options.sequences = 2;
  Reader reader(GetParam(), model, options);
  const KvCache::Id with = reader.cache().create(1024);
  const KvCache::Id without = reader.cache().create(1024);
  reader.skip(with, prefix, 64);
  reader.skip(without, prefix, 64);
  reader.cache().checkpoint(with);
  reader.skip(with, first, 33);
  reader.skip(without, first, 33);

  EXPECT_FALSE(reader.cache().can_truncate(without, 90));
  EXPECT_THROW(reader.cache().truncate(without, 90), Error);
  EXPECT_EQ(reader.cache().length(without), 90 + 2 * slots) << "a refused truncation changes nothing";

  ASSERT_TRUE(reader.cache().can_truncate(with, 90));
  reader.cache().truncate(with, 90);
  EXPECT_EQ(reader.cache().length(with), 90);
  Logits expected = read_alone(GetParam(), model, whole, 64);
  expected.erase(expected.begin(), expected.begin() + 90);
  EXPECT_EQ(first_difference(reader.read(with, second, 7), expected), "");
}

TEST_P(RingCache, ReusesAPrefixThroughAForkWhileTheOriginalWraps) {
  const Model model = local_model(GetParam(), 20);
  const int slots = ring_slots(20, 1024);
  const std::vector<int> prefix = text(model, slots + 50);
  const std::vector<int> first = random_tokens(2 * slots, model.config.vocab_size, 42);
  const std::vector<int> second = random_tokens(40, model.config.vocab_size, 43);
  std::vector<int> whole = prefix;
  whole.insert(whole.end(), second.begin(), second.end());

  ReaderOptions options;
  options.sequences = 2;
  Reader reader(GetParam(), model, options);
  const KvCache::Id original = reader.cache().create(1024);
  reader.skip(original, prefix, 64);
  const KvCache::Id fork = reader.cache().fork(original, 1024);
  reader.skip(original, first, 50);
  Logits expected = read_alone(GetParam(), model, whole, 64);
  expected.erase(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(prefix.size()));
  EXPECT_EQ(first_difference(reader.read(fork, second, 40), expected), "");
}

TEST_P(RingCache, GoesBackAFewTokensWithoutACheckpoint) {
  // Stop texts and cancellation are noticed a few tokens late; the slack of the ring is there for them.
  for (int window : {7, 64, 100}) {
    const Model model = local_model(GetParam(), window);
    const int stop = 2 * ring_slots(window, 1024) + 3;
    const std::vector<int> tokens = text(model, stop + 20);
    Reader reader(GetParam(), model);
    const KvCache::Id sequence = reader.cache().create(1024);
    reader.skip(sequence, std::span(tokens).first(stop), 64);
    reader.skip(sequence, random_tokens(8, model.config.vocab_size, 44), 1, RowKind::kGenerated);
    ASSERT_TRUE(reader.cache().can_truncate(sequence, stop)) << "window " << window;
    reader.cache().truncate(sequence, stop);
    Logits expected = read_alone(GetParam(), model, tokens, 64);
    expected.erase(expected.begin(), expected.begin() + stop);
    EXPECT_EQ(first_difference(reader.read(sequence, std::span(tokens).subspan(stop), 20), expected), "")
        << "window " << window;
  }
}

}  // namespace
}  // namespace gemma
