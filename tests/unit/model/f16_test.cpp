#include "model/f16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gemma {
namespace {

// By definition: sign, 5 bits of exponent, 10 of mantissa.
double value_of(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const int mantissa = static_cast<int>(bits & 1023);
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(F16, IsReadAndWrittenExactlyForEveryFiniteNumber) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7c00) == 0x7c00) continue;
    const f16 half{static_cast<std::uint16_t>(bits)};
    EXPECT_EQ(to_float(half), value_of(bits)) << bits;
    EXPECT_EQ(to_f16(to_float(half)), half) << bits;
  }
}

TEST(F16, KeepsWhatIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_float(f16{0x7c00}), infinity);
  EXPECT_EQ(to_float(f16{0xfc00}), -infinity);
  EXPECT_TRUE(std::isnan(to_float(f16{0x7c01})));
  EXPECT_EQ(to_f16(infinity).bits, 0x7c00);
  EXPECT_EQ(to_f16(-infinity).bits, 0xfc00);
  EXPECT_TRUE(std::isnan(to_float(to_f16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(F16, RoundsToNearestAndTiesToEven) {
  // Between each two neighbours: the middle goes to the even one, a little less or more to the nearer one.
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto middle = static_cast<float>((value_of(bits) + value_of(bits + 1)) / 2);
    const std::uint32_t even = bits + (bits & 1);
    EXPECT_EQ(to_f16(middle).bits, even) << bits;
    EXPECT_EQ(to_f16(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(to_f16(std::nextafter(middle, 1e6f)).bits, bits + 1);
    EXPECT_EQ(to_f16(-middle).bits, even | 0x8000);
  }
}

TEST(F16, OverflowsHalfwayToTheNumberThatThereIsNot) {
  EXPECT_EQ(to_float(to_f16(kLargestF16)), kLargestF16);
  EXPECT_EQ(to_float(to_f16(std::nextafter(65520.0f, 0.0f))), kLargestF16);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_f16(-1e38f).bits, 0xfc00);
  EXPECT_EQ(to_f16(1e-38f).bits, 0);
}

}  // namespace
}  // namespace gemma
