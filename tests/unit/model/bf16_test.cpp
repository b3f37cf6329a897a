#include "model/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "model/f16.h"

namespace gemma {
namespace {

TEST(Bf16, KeepsEveryValueThatItHas) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bf16 value{static_cast<std::uint16_t>(bits)};
    if (std::isnan(to_float(value))) continue;
    EXPECT_EQ(to_bf16(to_float(value)).bits, bits);
  }
}

TEST(Bf16, RoundsToTheNearestAndTiesToEven) {
  // Between neighbours the nearer one wins, and half-way the one whose last bit is 0: checked against the definition.
  for (std::uint32_t upper : {0x3f80u, 0x3f81u, 0x0000u, 0x0001u, 0xc123u, 0x7f7eu}) {
    for (std::uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const bool rounds_up = lower > 0x8000u || (lower == 0x8000u && (upper & 1) == 1);
      EXPECT_EQ(to_bf16(std::bit_cast<float>(upper << 16 | lower)).bits, upper + (rounds_up ? 1 : 0))
          << std::hex << upper << ' ' << lower;
    }
  }
}

TEST(Bf16, KeepsInfinityAndNaN) {
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::infinity())), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  // A NaN whose only set bits are those that are cut off.
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(to_float(to_bf16(std::numeric_limits<float>::max()))));
}

TEST(F16, HasTheValueThatTheStandardGivesIt) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int mantissa = static_cast<int>(bits & 1023);
    const float sign = (bits & 0x8000) != 0 ? -1 : 1;
    const float value = to_float(f16{static_cast<std::uint16_t>(bits)});
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(value)) << bits;
    } else if (exponent == 31) {
      EXPECT_EQ(value, sign * std::numeric_limits<float>::infinity()) << bits;
    } else {
      const int implicit = exponent == 0 ? 0 : 1024;
      EXPECT_EQ(value, sign * std::ldexp(static_cast<float>(implicit + mantissa), std::max(exponent, 1) - 25)) << bits;
    }
  }
}

}  // namespace
}  // namespace gemma
