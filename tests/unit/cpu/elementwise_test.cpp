#include "device/cpu/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "unit/cpu/every_target.h"

namespace gemma {
namespace {

class Elementwise : public EveryTarget {};
GEMMA_ON_EVERY_TARGET(Elementwise);

std::vector<float> random_floats(int count, unsigned seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& value : x) value = normal(random);
  return x;
}

/// Distance in units of the last place of a float.
double ulps(float actual, double expected) {
  const float nearest = static_cast<float>(expected);
  const double unit = std::nextafter(std::abs(nearest), std::numeric_limits<float>::infinity()) - std::abs(nearest);
  return std::abs(actual - expected) / unit;
}

TEST_P(Elementwise, CapsWithATanhThatIsRightToAFewUnitsOfTheLastPlace) {
  std::vector<float> x;
  for (int i = -30000; i <= 30000; ++i) x.push_back(static_cast<float>(i) * 0.001f);
  for (float large :
       {50.0f, 1000.0f, 1e20f, std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
    x.push_back(large);
    x.push_back(-large);
  }
  std::vector<float> capped = x;
  softcap(capped.data(), static_cast<int>(capped.size()), 1.0f);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, ulps(capped[i], std::tanh(static_cast<double>(x[i]))));
  EXPECT_LE(worst, 4);  // as Highway promises for Tanh

  std::vector<float> logits = {-1000, -31.5f, -0.1f, 0, 0.1f, 7, 29.9f, 1000};
  const std::vector<float> before = logits;
  softcap(logits.data(), static_cast<int>(logits.size()), 30.0f);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    // Tanh's error, and those of the division before it and the product after it.
    EXPECT_LE(ulps(logits[i], 30 * std::tanh(before[i] / 30.0)), 6) << before[i];
  }
}

TEST_P(Elementwise, SumsExponentialsOfLogitsOfAnyLength) {
  for (int count : {1, 5, 16, 17, 4096, 10007}) {
    const std::vector<float> x = random_floats(count, 1, 10);
    double sum = 0;
    for (float value : x) sum += std::exp(static_cast<double>(value));
    // Every exponential has a relative error of about 2^-24 and meets 16 additions in float32.
    EXPECT_NEAR(log_sum_exp(x), std::log(sum), 20 * 0x1p-24) << count;
  }
}

TEST_P(Elementwise, SumsExponentialsOfLogitsThatAreNotNumbers) {
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_NEAR(log_sum_exp(std::vector<float>{nan, 1, -infinity, 1, nan}), 1 + std::log(2.0), 1e-6);
  EXPECT_EQ(log_sum_exp(std::vector<float>{nan, nan}), -infinity);
  EXPECT_EQ(log_sum_exp(std::vector<float>{-infinity}), -infinity);
  EXPECT_FLOAT_EQ(static_cast<float>(log_sum_exp(std::vector<float>{infinity, 3})), std::numeric_limits<float>::max());
}

TEST_P(Elementwise, NormalisesRowsOfAnyLength) {
  for (int count : {1, 3, 16, 31, 36, 320, 2304}) {
    const std::vector<float> x = random_floats(count, 2, 3);
    const std::vector<float> y = random_floats(count, 3);
    const std::vector<float> weight = random_floats(count, 4, 0.3f);
    constexpr float kEps = 1e-3f;
    std::vector<float> normed(x.size());
    rms_norm(x, weight, kEps, normed.data());
    std::vector<float> sum = y;
    add_rms_norm(x, weight, kEps, sum.data());
    double squares = 0;
    for (float value : x) squares += static_cast<double>(value) * value;
    const double factor = 1 / std::sqrt(squares / count + kEps);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = x[i] * factor * (1 + static_cast<double>(weight[i]));
      // At most count / 4 additions of positive squares, halved by the root, and four roundings after that.
      const double tolerance = (count / 8.0 + 8) * 0x1p-24;
      EXPECT_NEAR(normed[i], expected, std::abs(expected) * tolerance);
      EXPECT_NEAR(sum[i], y[i] + expected, (std::abs(expected) + std::abs(y[i])) * tolerance);
    }
  }
}

TEST_P(Elementwise, RotatesHeadsOfAllSizes) {
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    const std::vector<float> x = random_floats(head_dim, 5);
    const int half = head_dim / 2;
    std::vector<float> cos, sin;
    for (int i = 0; i < half; ++i) {
      cos.push_back(static_cast<float>(std::cos(i + 0.5)));
      sin.push_back(static_cast<float>(std::sin(i + 0.5)));
    }
    std::vector<float> rotated = x;
    rotate(rotated.data(), head_dim, cos.data(), sin.data(), 0.0625f);
    for (int i = 0; i < half; ++i) {
      const double a = x[i];
      const double b = x[i + half];
      const double tolerance = 3 * 0x1p-24 * (std::abs(a) + std::abs(b)) * 0.0625;  // two or three roundings
      EXPECT_NEAR(rotated[i], 0.0625 * (a * cos[i] - b * sin[i]), tolerance);
      EXPECT_NEAR(rotated[i + half], 0.0625 * (b * cos[i] + a * sin[i]), tolerance);
    }
  }
}

TEST_P(Elementwise, GatesWithTheTanhFormOfGelu) {
  std::vector<float> gate;
  for (int i = -2000; i <= 2000; ++i) gate.push_back(static_cast<float>(i) * 0.01f);
  for (float large : {100.0f, 1e10f, 1e15f}) {
    gate.push_back(large);
    gate.push_back(-large);
  }
  const int count = static_cast<int>(gate.size());
  const std::vector<float> up = random_floats(count, 6);
  std::vector<float> out(gate.size());
  geglu(gate.data(), up.data(), count, out.data());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double g = gate[i];
    const double gelu = 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g)));
    // 1 + tanh cancels for negative arguments: its absolute error is some units of 2^-24, and its factor is g / 2.
    EXPECT_NEAR(out[i], gelu * up[i], (8 * 0x1p-24 * std::abs(g) + 4 * 0x1p-24 * std::abs(gelu)) * std::abs(up[i]))
        << g;
  }
}

}  // namespace
}  // namespace gemma
