// A row's results depend on its sequence alone, to the last bit.
#include <gtest/gtest.h>

#include <vector>

#include "support/reader.h"
#include "support/small_model.h"
#include "unit/device/device_test.h"

namespace gemma {
namespace {

Model model_for_determinism(const DeviceKind& kind) {
  Config config = small_config(kind.width_multiple);
  config.window = 100;
  config.head_dim = 48;
  return random_model(config, 21);
}

class Determinism : public DeviceTest {};
GEMMA_ON_ALL_DEVICES(Determinism);

TEST_P(Determinism, AnyChunkSizeGivesTheSameBits) {
  const Model model = model_for_determinism(GetParam());
  const std::vector<int> tokens = random_tokens(600, model.config.vocab_size, 22);
  const Logits expected = read_alone(GetParam(), model, tokens, 1);
  for (int chunk : {2, 7, 64, 65, 512, 600}) {
    EXPECT_EQ(first_difference(read_alone(GetParam(), model, tokens, chunk), expected), "") << "chunk " << chunk;
  }
}

TEST_P(Determinism, AnyNumberOfThreadsGivesTheSameBits) {
  const Model model = model_for_determinism(GetParam());
  const std::vector<int> tokens = random_tokens(150, model.config.vocab_size, 23);
  for (int chunk : {1, 7, 150}) {
    const Logits expected = read_alone(GetParam(), model, tokens, chunk, 1);
    for (int threads : {2, 3}) {
      EXPECT_EQ(first_difference(read_alone(GetParam(), model, tokens, chunk, threads), expected), "")
          << threads << " threads, chunk " << chunk;
    }
  }
}

TEST_P(Determinism, ASequenceAmongOthersGetsTheSameBitsAsAlone) {
  const Model model = model_for_determinism(GetParam());
  const std::vector<int> tokens = random_tokens(180, model.config.vocab_size, 24);
  const auto piece = [&](int first, int count) {
    return std::vector<int>(tokens.begin() + first, tokens.begin() + first + count);
  };

  ReaderOptions options;
  options.context = 400;
  options.max_rows = 128;
  Reader alone(GetParam(), model, options);
  const KvCache::Id only = alone.cache().create(400);
  Logits expected = alone.read(only, piece(0, 130), 128);
  append(expected, alone.read(only, piece(130, 50), 1, RowKind::kGenerated));

  options.sequences = 4;
  options.threads = 2;
  Reader crowd(GetParam(), model, options);
  std::vector<KvCache::Id> ids(4);
  for (KvCache::Id& id : ids) id = crowd.cache().create(400);
  unsigned seed = 100;
  const auto noise = [&](int count) { return random_tokens(count, model.config.vocab_size, ++seed); };

  Logits found;
  for (int done = 0; done < 130; done += 13) {
    const Passage passages[] = {
        {ids[0], noise(1), RowKind::kGenerated}, {ids[2], piece(done, 13)}, {ids[1], noise(17)}};
    append(found, crowd.step(passages)[1]);
  }
  for (int done = 130; done < 180; ++done) {
    const Passage passages[] = {
        {ids[3], noise(1), RowKind::kGenerated}, {ids[0], noise(4)}, {ids[2], piece(done, 1), RowKind::kGenerated}};
    append(found, crowd.step(passages)[2]);
  }
  EXPECT_EQ(first_difference(found, expected), "");
}

TEST_P(Determinism, RowsWithoutOutputsLeaveTheSameCache) {
  const Model model = model_for_determinism(GetParam());
  const std::vector<int> tokens = random_tokens(150, model.config.vocab_size, 25);
  const Logits expected = read_alone(GetParam(), model, tokens, 50);

  Reader reader(GetParam(), model);
  const KvCache::Id sequence = reader.cache().create(150);
  reader.skip(sequence, std::span(tokens).first(149), 50);
  EXPECT_EQ(first_difference(reader.read(sequence, std::span(tokens).last(1), 1), {expected.back()}), "");
}

}  // namespace
}  // namespace gemma
