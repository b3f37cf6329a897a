#include "runtime/calibrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model/dequantise.h"
#include "model/model_file.h"
#include "support/error_text.h"
#include "support/small_model.h"

namespace gemma {
namespace {

using testing::HasSubstr;

constexpr int kBos = 2;

class Calibrate : public ::testing::Test {
 protected:
  static std::vector<int> tokens(std::size_t count) {
    std::mt19937 random(2);
    std::vector<int> drawn(count);
    for (int& token : drawn) token = static_cast<int>(random() % 67);
    return drawn;
  }

  Model model_ = random_model(small_config(), 1);
};

TEST_F(Calibrate, GivesTheMeanSquaresOfTheInputs) {
  const std::vector<int> text = tokens(2500);
  const auto found = calibrate(model_, text, kBos, 2, {});
  EXPECT_EQ(found.size(), 4u * 3);
  EXPECT_EQ(found.at("layers.2.mlp.down").size(), 80u);
  EXPECT_FALSE(found.contains("embed"));

  // The first layer's input is the norm of the embeddings, whatever comes before a token. 2500 tokens are three
  // windows, each with a <bos>.
  std::vector<int> read = {kBos, kBos, kBos};
  read.insert(read.end(), text.begin(), text.end());
  std::vector<double> expected(48);
  std::vector<float> x(48);
  for (const int token : read) {
    dequantise(model_.weights.embed, token, x);
    double squares = 0;
    for (float& value : x) {
      value *= model_.config.embedding_scale();
      squares += double{value} * value;
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double normed = x[i] / std::sqrt(squares / 48 + model_.config.rms_norm_eps) *
                            (1 + model_.weights.layers[0].attention_norm[i]);
      expected[i] += normed * normed / static_cast<double>(read.size());
    }
  }
  const std::vector<float>& qkv = found.at("layers.0.attn.qkv");
  ASSERT_EQ(qkv.size(), 48u);
  for (std::size_t i = 0; i < 48; ++i) EXPECT_NEAR(qkv[i] / expected[i], 1, 1e-5) << i;  // float32 against double
}

TEST_F(Calibrate, IsTheSameForAnyNumberOfThreads) {
  const std::vector<int> text = tokens(1500);
  EXPECT_EQ(calibrate(model_, text, kBos, 1, {}), calibrate(model_, text, kBos, 3, {}));
}

TEST_F(Calibrate, RefusesTooShortATextAndStopsWhenTold) {
  EXPECT_THAT(error_text([&] { calibrate(model_, tokens(100), kBos, 1, {}); }), HasSubstr("has 100 tokens"));
  const auto stop = [](std::uint64_t, std::uint64_t total) {
    EXPECT_EQ(total, 1500u);
    return false;
  };
  EXPECT_THAT(error_text([&] { calibrate(model_, tokens(1500), kBos, 1, stop); }), HasSubstr("interrupted"));
  const Model q8 = random_model(small_config(32), 1, false, {WeightType::kQ8, WeightType::kQ8});
  EXPECT_THAT(error_text([&] { calibrate(q8, tokens(1500), kBos, 1, {}); }), HasSubstr("in bf16"));
}

}  // namespace
}  // namespace gemma
