#include "device/cpu/int8_inputs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "unit/cpu/every_target.h"

namespace gemma {
namespace {

class Int8Inputs : public EveryTarget {};
GEMMA_ON_EVERY_TARGET(Int8Inputs);

constexpr int kColumns = 320;  // a block and a rest of two groups

/// Where the code of a column is.
int place_of(int column, WeightType type) {
  if (type == WeightType::kQ8) return column;
  return column / 128 * 128 + column % kGroupColumns / 16 * 64 + column / kGroupColumns % 4 * 16 + column % 16;
}

std::vector<float> normal_inputs(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(kColumns);
  for (float& value : x) value = normal(random);
  return x;
}

TEST_P(Int8Inputs, AreTheNearestMultiplesOfTheGroupsLargestMagnitudeOver127) {
  for (const WeightType type : {WeightType::kQ8, WeightType::kQ4}) {
    Int8Memory memory(3, kColumns, "test");
    const std::vector<float> x = normal_inputs(1);
    memory.quantise(1, normal_inputs(2).data(), kColumns, type);
    memory.quantise(1, x.data(), kColumns, type);
    const Int8Rows row = memory.rows(kColumns).from(1);
    ASSERT_EQ(row.columns, 512);
    for (int group = 0; group < kColumns / kGroupColumns; ++group) {
      const float* inputs = &x[static_cast<std::size_t>(group) * kGroupColumns];
      float max = 0;
      for (int i = 0; i < kGroupColumns; ++i) max = std::max(max, std::abs(inputs[i]));
      EXPECT_EQ(row.scales[group], max / 127);
      int sum = 0;
      for (int i = 0; i < kGroupColumns; ++i) {
        const std::int8_t code = row.codes[place_of(group * kGroupColumns + i, type)];
        sum += code;
        // Half a step, and the rounding of the factor and of the product with it.
        EXPECT_LE(std::abs(code - static_cast<double>(inputs[i]) * 127 / max), 0.5 + 128 * 0x1p-23);
        EXPECT_LE(std::abs(code), 127);
      }
      EXPECT_EQ(row.offsets[group], -128 * sum);
      EXPECT_EQ(row.sums[group], row.scales[group] * static_cast<float>(sum));
    }
    for (int group = kColumns / kGroupColumns; group < row.groups(); ++group) {
      EXPECT_EQ(row.scales[group], 0);
      EXPECT_EQ(row.sums[group], 0);
      EXPECT_EQ(row.offsets[group], 0);
    }
    for (int column = kColumns; column < row.columns; ++column) EXPECT_EQ(row.codes[place_of(column, type)], 0);
  }
}

TEST_P(Int8Inputs, RoundHalvesToEven) {
  std::vector<float> x(kColumns, 0.0f);
  const float halves[] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -127};
  std::copy(std::begin(halves), std::end(halves), x.begin());
  Int8Memory memory(1, kColumns, "test");
  memory.quantise(0, x.data(), kColumns, WeightType::kQ8);
  const std::vector<int> expected = {127, 0, 2, 2, 0, -2, -2, 126, -127};
  const std::int8_t* codes = memory.rows(kColumns).codes;
  EXPECT_EQ(std::vector<int>(codes, codes + expected.size()), expected);
}

TEST_P(Int8Inputs, OfTheSmallestNumbersAreZero) {
  const std::vector<float> x(kColumns, std::numeric_limits<float>::denorm_min());
  Int8Memory memory(1, kColumns, "test");
  memory.quantise(0, x.data(), kColumns, WeightType::kQ8);
  EXPECT_EQ(memory.rows(kColumns).scales[0], 0);
  EXPECT_EQ(memory.rows(kColumns).codes[0], 0);
}

TEST_P(Int8Inputs, OfTheLargestNumbersStayFinite) {
  std::vector<float> x(kColumns, std::numeric_limits<float>::max());
  x[1] = std::numeric_limits<float>::lowest();
  Int8Memory memory(1, kColumns, "test");
  memory.quantise(0, x.data(), kColumns, WeightType::kQ8);
  EXPECT_EQ(memory.rows(kColumns).scales[0], std::numeric_limits<float>::max() / 127);
  EXPECT_EQ(memory.rows(kColumns).codes[0], 127);
  EXPECT_EQ(memory.rows(kColumns).codes[1], -127);
}

TEST_P(Int8Inputs, MarkAGroupThatIsNotFiniteAndSpareTheOthers) {
  for (const float bad : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = normal_inputs(3);
    x[40] = bad;
    Int8Memory memory(1, kColumns, "test");
    memory.quantise(0, x.data(), kColumns, WeightType::kQ4);
    const Int8Rows row = memory.rows(kColumns);
    EXPECT_TRUE(std::isfinite(row.scales[0]));
    EXPECT_FALSE(std::isfinite(row.scales[1]));
    for (int i = 0; i < kGroupColumns; ++i) EXPECT_EQ(row.codes[place_of(kGroupColumns + i, WeightType::kQ4)], 0);
  }
}

}  // namespace
}  // namespace gemma
