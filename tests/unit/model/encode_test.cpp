#include "model/encode.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "model/bf16.h"

namespace gemma {
namespace {

template <typename To, typename From>
std::vector<To> encoded(const std::vector<From>& source, DType from, DType to) {
  const std::vector<std::byte> bytes = encode(std::as_bytes(std::span(source)), from, to);
  std::vector<To> values(bytes.size() / sizeof(To));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST(Encode, RoundsF32ToTheNearestBf16) {
  std::mt19937 random(1);
  std::vector<float> source;
  while (source.size() < 100'000) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isfinite(value) && std::isfinite(to_float(to_bf16(value)))) source.push_back(value);
  }
  const std::vector<bf16> target = encoded<bf16>(source, DType::kF32, DType::kBf16);
  for (std::size_t i = 0; i < source.size(); ++i) {
    // No neighbour is nearer, and one that is as near has an odd last bit.
    const double error = std::fabs(double{source[i]} - to_float(target[i]));
    for (const int step : {-1, 1}) {
      const bf16 neighbour{static_cast<std::uint16_t>(target[i].bits + step)};
      if (!std::isfinite(to_float(neighbour)) || (neighbour.bits ^ target[i].bits) >> 15 != 0) continue;
      const double other = std::fabs(double{source[i]} - to_float(neighbour));
      ASSERT_TRUE(error < other || (error == other && target[i].bits % 2 == 0)) << source[i];
    }
  }
}

TEST(Encode, ChangesTypesThatNeedNoRoundingExactly) {
  EXPECT_EQ(encoded<float>(std::vector<float>{1.0f, 1e-40f, -3.25f}, DType::kF32, DType::kF32),
            (std::vector<float>{1.0f, 1e-40f, -3.25f}));
  EXPECT_EQ(encoded<float>(std::vector<std::uint16_t>{0x3c00, 0xc200, 0x0001}, DType::kF16, DType::kF32),
            (std::vector<float>{1.0f, -3.0f, 0x1p-24f}));
  EXPECT_EQ(encoded<float>(std::vector<std::uint16_t>{0x3f80, 0xc040}, DType::kBf16, DType::kF32),
            (std::vector<float>{1.0f, -3.0f}));
  EXPECT_EQ(encoded<std::uint16_t>(std::vector<std::uint16_t>{0x3f80, 0x8001}, DType::kBf16, DType::kBf16),
            (std::vector<std::uint16_t>{0x3f80, 0x8001}));
}

TEST(Encode, FindsTheFirstNumberThatNoWeightCanBe) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float largest = std::numeric_limits<float>::max();
  struct Case {
    float value;
    DType to;
    std::string what;
  };
  for (const Case& bad :
       {Case{nan, DType::kBf16, "a NaN"}, Case{-nan, DType::kF32, "a NaN"}, Case{infinity, DType::kBf16, "an infinity"},
        Case{-infinity, DType::kF32, "an infinity"}, Case{-largest, DType::kBf16, "a number too large for bf16"}}) {
    for (const std::size_t place : {0, 1, 62, 99}) {
      std::vector<float> source(100, 1.0f);
      source[place] = bad.value;
      source[99] = bad.value;
      try {
        encoded<std::uint8_t>(source, DType::kF32, bad.to);
        ADD_FAILURE() << bad.what;
      } catch (const NotFinite& error) {
        EXPECT_EQ(error.index, place);
        EXPECT_EQ(error.what, bad.what);
      }
    }
  }
  EXPECT_EQ(encoded<float>(std::vector<float>{largest}, DType::kF32, DType::kF32).front(), largest);
}

}  // namespace
}  // namespace gemma
