#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "model/check_scales.h"
#include "model/dequantise.h"
#include "model/model_file.h"
#include "model/weight_layout.h"
#include "support/small_model.h"

namespace gemma {
namespace {

bool is_aligned(const void* address) { return reinterpret_cast<std::uintptr_t>(address) % kWeightAlignment == 0; }

// Mean of x and of x^2 over a matrix.
std::pair<double, double> moments(const Matrix& matrix) {
  double sum = 0;
  double squares = 0;
  std::vector<float> weights(static_cast<std::size_t>(matrix.columns));
  for (int row = 0; row < matrix.rows; ++row) {
    dequantise(matrix, row, weights);
    for (const float value : weights) {
      sum += value;
      squares += double{value} * value;
    }
  }
  const double count = double{1} * matrix.rows * matrix.columns;
  return {sum / count, squares / count};
}

TEST(RandomModel, HasNormalWeightsThatKeepActivationsOfOrderOne) {
  Config config = small_config();
  config.vocab_size = 2000;
  for (const bool is_cheap : {false, true}) {
    const Model model = random_model(config, 7, is_cheap);
    const auto [mean, square] = moments(model.weights.embed);
    // 96,000 numbers of deviation 1/sqrt(48): five standard errors are 0.0023 and, relative to the square, 0.023.
    EXPECT_NEAR(mean, 0, 0.0024);
    EXPECT_NEAR(square * config.hidden_size, 1, 0.024);
  }
}

TEST(RandomModel, HasQuantisedWeightsOfTheSameDeviation) {
  Config config = small_config(32);
  config.vocab_size = 2000;
  for (const WeightType type : {WeightType::kQ8, WeightType::kQ4}) {
    const Model model = random_model(config, 7, false, {type, type});
    EXPECT_EQ(model.weights.types(), (WeightTypes{type, type}));
    for (const Matrix& matrix : {model.weights.embed, model.weights.layers[2].down}) {
      const auto [mean, square] = moments(matrix);
      // At least 6,144 numbers of deviation one in units of 1/sqrt(columns), flatter than normal ones: five standard
      // errors are 0.064 of the mean and 0.07 of the square; 2% more for constants rounded to float16 and to 3 digits.
      EXPECT_NEAR(mean * std::sqrt(matrix.columns), 0, 0.064) << name_of(type);
      EXPECT_NEAR(square * matrix.columns, 1, 0.09) << name_of(type);
    }
    check_scales(model);
  }
}

TEST(RandomModel, IsTheSameForTheSameSeedOnly) {
  const Model one = random_model(small_config(), 1);
  const Model same = random_model(small_config(), 1);
  const Model other = random_model(small_config(), 2);
  const auto row = [](const Model& model) { return model.weights.layers[1].gate_up.row(3); };
  EXPECT_TRUE(std::equal(row(one).begin(), row(one).end(), row(same).begin()));
  EXPECT_FALSE(std::equal(row(one).begin(), row(one).end(), row(other).begin()));
  EXPECT_EQ(one.identity, same.identity);
  EXPECT_NE(one.identity, other.identity);
}

TEST(RandomModel, HasAlignedWeightsOfTheShapesOfItsConfiguration) {
  Config config = small_config();
  config.is_embedding_tied = false;
  Model model = random_model(config, 3, true);
  struct Checker {
    void operator()(const std::string& name, const Matrix& matrix, int rows, int columns) const {
      EXPECT_TRUE(is_aligned(matrix.data)) << name;
      EXPECT_EQ(std::pair(matrix.rows, matrix.columns), std::pair(rows, columns)) << name;
    }
    void operator()(const std::string& name, std::span<const float> norm, int size) const {
      EXPECT_TRUE(is_aligned(norm.data())) << name;
      EXPECT_EQ(norm.size(), static_cast<std::size_t>(size)) << name;
    }
  };
  Weights weights = model.weights;
  visit_weights(config, weights, Checker{});
  EXPECT_NE(model.weights.head.data, model.weights.embed.data);
  const std::int64_t norms = config.hidden_size * (4 * config.layer_count() + 1);
  const std::int64_t all = config.embedding_parameters() + config.other_parameters();
  EXPECT_EQ(model.weights.bytes(), static_cast<std::uint64_t>(2 * (all - norms) + 4 * norms));
}

}  // namespace
}  // namespace gemma
