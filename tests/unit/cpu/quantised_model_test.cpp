// Whole models with quantised weights on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/reader.h"
#include "support/small_model.h"

namespace gemma {
namespace {

class QuantisedModel : public ::testing::TestWithParam<WeightTypes> {
 protected:
  QuantisedModel() {
    Config config = small_config(32);
    config.head_dim = 48;
    config.heads = 4;
    config.window = 40;
    config.is_embedding_tied = GetParam().layers != WeightType::kQ4;
    model_ = random_model(config, 31, /*cheap=*/false, GetParam());
    tokens_ = random_tokens(150, config.vocab_size, 32);
  }

  const DeviceKind kind_{"Cpu", KvType::kF32, 0, make_cpu_device};
  Model model_;
  std::vector<int> tokens_;
};

INSTANTIATE_TEST_SUITE_P(Of, QuantisedModel,
                         ::testing::Values(WeightTypes{WeightType::kQ8, WeightType::kQ8},
                                           WeightTypes{WeightType::kQ4, WeightType::kQ8},
                                           WeightTypes{WeightType::kQ4, WeightType::kQ4},
                                           WeightTypes{WeightType::kQ8, WeightType::kBf16}),
                         [](const auto& param_info) {
                           return std::string(name_of(param_info.param.layers)) + "_embedding_" +
                                  std::string(name_of(param_info.param.embed));
                         });

TEST_P(QuantisedModel, AgreesWithNaiveForward) {
  const Logits logits = read_alone(kind_, model_, tokens_, 64);
  const naive::Vectors expected = naive::forward(model_, tokens_).logits;
  double squares = 0;
  std::size_t count = 0;
  for (const naive::Vector& row : expected) {
    for (double logit : row) squares += logit * logit;
    count += row.size();
  }
  // The largest of 32 normally distributed inputs is about 2.5 deviations, so a step is 2.5 / 127 of one and rounding
  // to it has a deviation of 2.5 / 127 / sqrt(12) = 0.6%. That comes with each of the 13 products on the way, in
  // quadrature 2%; 1.7 to 1.8% measured.
  EXPECT_LT(typical_difference(logits, expected), 0.025 * std::sqrt(squares / static_cast<double>(count)));
}

TEST_P(QuantisedModel, GivesTheSameBitsForAnyChunkSizeAndNumberOfThreads) {
  const Logits expected = read_alone(kind_, model_, tokens_, 1);
  for (const int chunk : {7, 16, 150}) {
    EXPECT_EQ(first_difference(read_alone(kind_, model_, tokens_, chunk), expected), "") << "chunk " << chunk;
  }
  EXPECT_EQ(first_difference(read_alone(kind_, model_, tokens_, 64, 3), expected), "") << "3 threads";
}

}  // namespace
}  // namespace gemma
