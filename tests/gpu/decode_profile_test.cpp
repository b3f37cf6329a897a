// The clocks in the decode kernel, which --profile of gemma-bench reads.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "model/model_file.h"
#include "runtime/kv_cache.h"
#include "runtime/transformer.h"
#include "support/reader.h"
#include "support/small_model.h"

namespace gemma {
namespace {

class DecodeProfile : public ::testing::TestWithParam<WeightTypes> {
 protected:
  static constexpr int kSteps = 20;

  /// Draws a token after a text of `kSteps` tokens, of whose steps every other one has clocks if asked for.
  static std::vector<float> last_logits(const Model& model, bool has_clocks, std::vector<PhaseTime>* times = nullptr) {
    const std::unique_ptr<Device> device = make_cuda_device(
        model, {.ordinal = 0, .max_rows = 1, .kv = plan_kv_cache(model.config.window, kSteps + 1, 1, KvType::kBf16)});
    KvCache cache(*device);
    const KvCache::Id id = cache.create(kSteps + 1);
    std::vector<float> logits(static_cast<std::size_t>(model.config.vocab_size));
    for (int i = 0; i <= kSteps; ++i) {
      Batch batch;
      batch.sequences.push_back(cache.extend(id, 1));
      batch.rows.push_back({.token = 3 + i, .position = i, .sequence = 0, .kind = RowKind::kGenerated});
      if (has_clocks && i % 2 == 0 && i < kSteps) {
        const std::vector<PhaseTime> of_step = device->profile_decode(batch);
        if (times != nullptr) *times = of_step;
        continue;
      }
      batch.outputs.push_back({.row = 0, .sampling = Sampling{.temperature = 0}, .logits = logits});
      forward(model.config, *device, batch);
    }
    return logits;
  }
};

INSTANTIATE_TEST_SUITE_P(Of, DecodeProfile,
                         ::testing::Values(WeightTypes{}, WeightTypes{WeightType::kQ8, WeightType::kQ8},
                                           WeightTypes{WeightType::kQ4, WeightType::kQ8},
                                           WeightTypes{WeightType::kQ4, WeightType::kQ4}),
                         [](const auto& param_info) {
                           return std::string(name_of(param_info.param.layers)) + "_embedding_" +
                                  std::string(name_of(param_info.param.embed));
                         });

TEST_P(DecodeProfile, LeavesTheCacheAsAStepWithoutClocksDoes) {
  const Model model = random_model(small_config(32), 5, /*cheap=*/false, GetParam());
  EXPECT_EQ(last_logits(model, true), last_logits(model, false));
}

TEST_P(DecodeProfile, AccountsForNoMoreTimeThanPasses) {
  const Model model = random_model(small_config(32), 5, /*cheap=*/false, GetParam());
  std::vector<PhaseTime> times;
  const auto start = std::chrono::steady_clock::now();
  last_logits(model, true, &times);
  const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ASSERT_EQ(times.size(), 8u);
  double all = 0;
  for (const PhaseTime& part : times) {
    EXPECT_GT(part.busy_s, 0) << part.name;
    EXPECT_GE(part.waiting_s, 0) << part.name;
    all += part.busy_s + part.waiting_s;
  }
  EXPECT_LT(all, passed / 10);
}

}  // namespace
}  // namespace gemma
