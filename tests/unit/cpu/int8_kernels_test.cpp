#include "device/cpu/int8_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/dequantise.h"
#include "unit/cpu/guarded_memory.h"

namespace gemma {
namespace {

/// A quantised matrix of random codes, all of whose tensors end where readable memory ends.
class QuantisedMatrix {
 public:
  QuantisedMatrix(WeightType type, int rows, int columns, unsigned seed) {
    matrix_.type = type;
    matrix_.rows = rows;
    matrix_.columns = columns;
    std::mt19937 random(seed);
    const auto byte = [&] { return static_cast<std::uint8_t>(random() >> 8); };
    const auto scale = [&] { return to_f16(std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000, -8)); };
    const int groups = matrix_.groups();
    const int blocks = matrix_.blocks();
    if (type == WeightType::kQ8) {
      matrix_.q8.codes = fill<std::int8_t>(rows * columns, [&] { return std::max(-127, byte() - 128); });
      matrix_.q8.scales = fill<f16>(rows * groups, scale);
    } else {
      matrix_.q4.codes = fill<std::uint8_t>(rows * columns / 2, byte);
      matrix_.q4.scales = fill<std::uint8_t>(rows * groups, byte);
      matrix_.q4.minimums = fill<std::uint8_t>(rows * groups, byte);
      matrix_.q4.d = fill<f16>(rows * blocks, scale);
      matrix_.q4.m = fill<f16>(rows * blocks, scale);
    }
  }

  const Matrix& view() const { return matrix_; }

 private:
  template <typename T, typename Value>
  const T* fill(int count, const Value& value) {
    parts_.push_back(std::make_unique<GuardedMemory>(static_cast<std::size_t>(count) * sizeof(T)));
    T* data = parts_.back()->as<T>();
    for (int i = 0; i < count; ++i) data[i] = static_cast<T>(value());
    return data;
  }

  Matrix matrix_;
  std::vector<std::unique_ptr<GuardedMemory>> parts_;
};

struct Inputs {
  Inputs(WeightType type, int rows, int row_columns, unsigned seed)
      : columns(row_columns), memory(rows, row_columns, "test") {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    floats.resize(static_cast<std::size_t>(rows) * columns);
    for (float& value : floats) value = normal(random);
    for (int m = 0; m < rows; ++m) memory.quantise(m, row(m), columns, type);
  }
  const float* row(int m) const { return &floats[static_cast<std::size_t>(m) * columns]; }
  Int8Rows view() const { return memory.rows(columns); }

  int columns;
  std::vector<float> floats;
  Int8Memory memory;
};

std::vector<float> product(const Int8Kernels& kernels, const Matrix& weights, int first, int count, const Int8Rows& x,
                           int rows) {
  std::vector<float> out(static_cast<std::size_t>(rows) * count, std::nanf(""));
  kernels.multiply(weights, first, count, x, rows, out.data(), static_cast<std::size_t>(count),
                   Int8Scratch(weights.columns));
  return out;
}

bool are_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Runs with the kernels of every instruction set that this machine has, for both types.
class Int8Product : public ::testing::TestWithParam<std::tuple<Int8Kernels, WeightType>> {
 protected:
  const Int8Kernels& kernels() const { return std::get<0>(GetParam()); }
  WeightType type() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(On, Int8Product,
                         ::testing::Combine(::testing::ValuesIn(usable_int8_kernels().begin(),
                                                                usable_int8_kernels().end()),
                                            ::testing::Values(WeightType::kQ8, WeightType::kQ4)),
                         [](const auto& param_info) {
                           std::string name = std::get<0>(param_info.param).name;
                           std::erase_if(name, [](unsigned char c) { return !std::isalnum(c); });
                           return name + "_" + std::string(name_of(std::get<1>(param_info.param)));
                         });

TEST_P(Int8Product, AgreesWithDequantisedWeightsInDoublePrecision) {
  unsigned seed = 1;
  for (const int columns : {32, 64, 96, 256, 288, 800, 2304, 8192}) {
    for (const int rows : {1, 3, 8, 17, 33}) {
      const int outputs = 1 + (rows * 7 + columns / 32) % kInt8OutputBlock;
      const QuantisedMatrix weights(type(), outputs, columns, seed++);
      const Inputs x(type(), rows, columns, seed++);
      const Int8Rows view = x.view();
      const std::vector<float> out = product(kernels(), weights.view(), 0, outputs, view, rows);
      std::vector<float> w(static_cast<std::size_t>(columns));
      for (int n = 0; n < outputs; ++n) {
        dequantise(weights.view(), n, w);
        for (int m = 0; m < rows; ++m) {
          double sum = 0;
          double tolerance = 0;
          for (int k = 0; k < columns; ++k) {
            const double step = view.from(m).scales[k / kGroupColumns];
            const double input = x.row(m)[k];
            sum += input * w[static_cast<std::size_t>(k)];
            // An input is rounded by half a step at most. That is nearly all of the error: the rest is the rounding of
            // each group's term in float32, in which a q4 weight counts with its parts (none of them larger than 32
            // here), and of the additions.
            const int groups = columns / kGroupColumns;
            const double largest = type() == WeightType::kQ8 ? std::abs(w[static_cast<std::size_t>(k)]) : 32;
            tolerance += std::abs(w[static_cast<std::size_t>(k)]) * step * (0.5 + 1e-4) +
                         (groups + 8) * 0x1p-24 * largest * std::abs(input);
          }
          ASSERT_NEAR(out[static_cast<std::size_t>(m) * outputs + n], sum, tolerance)
              << rows << " rows, " << columns << " columns, at " << m << ", " << n;
        }
      }
    }
  }
}

TEST_P(Int8Product, AgreesWithTheQuantisedInputsToTheRoundingOfFloat32) {
  constexpr int kColumns = 1056;
  constexpr int kRows = 19;
  constexpr int kOutputs = 37;
  const QuantisedMatrix weights(type(), kOutputs, kColumns, 1);
  // Inputs that are multiples of a power of two are quantised without an error.
  Inputs x(type(), kRows, kColumns, 2);
  for (int m = 0; m < kRows; ++m) {
    for (int k = 0; k < kColumns; ++k) {
      float& value = x.floats[static_cast<std::size_t>(m) * kColumns + static_cast<std::size_t>(k)];
      value = k % kGroupColumns == 5 ? -127.0f / 32 : std::clamp(std::round(value * 32), -127.0f, 127.0f) / 32;
    }
    x.memory.quantise(m, x.row(m), kColumns, type());
  }
  const std::vector<float> out = product(kernels(), weights.view(), 0, kOutputs, x.view(), kRows);
  std::vector<float> w(kColumns);
  for (int n = 0; n < kOutputs; ++n) {
    dequantise(weights.view(), n, w);
    for (int m = 0; m < kRows; ++m) {
      double sum = 0;
      double magnitude = 0;
      for (int k = 0; k < kColumns; ++k) {
        sum += static_cast<double>(x.row(m)[k]) * w[static_cast<std::size_t>(k)];
        magnitude +=
            std::abs(x.row(m)[k]) * (type() == WeightType::kQ8 ? std::abs(w[static_cast<std::size_t>(k)]) : 32);
      }
      // A lane adds up at most 5 groups, each rounded twice in q8 and four times in q4; then eight lanes are added.
      ASSERT_NEAR(out[static_cast<std::size_t>(m * kOutputs + n)], sum, (5 * 4 + 8) * 0x1p-24 * magnitude);
    }
  }
}

TEST_P(Int8Product, GivesTheSameBitsAsEveryOtherInstructionSet) {
  for (const int columns : {32, 96, 512, 1184, 2304}) {
    for (const int rows : {1, 5, 16, 21}) {
      const QuantisedMatrix weights(type(), 45, columns, static_cast<unsigned>(columns));
      const Inputs x(type(), rows, columns, static_cast<unsigned>(rows));
      const Int8Kernels& reference = usable_int8_kernels().back();
      EXPECT_TRUE(are_same_bits(product(kernels(), weights.view(), 0, 45, x.view(), rows),
                                product(reference, weights.view(), 0, 45, x.view(), rows)))
          << rows << " rows, " << columns << " columns";
    }
  }
}

TEST_P(Int8Product, GivesARowTheSameBitsAloneAndAmongOthersAndAnOutputTheSameInAnyBlock) {
  constexpr int kRows = 70;
  for (const int columns : {96, 1024, 1120}) {
    const QuantisedMatrix weights(type(), kInt8OutputBlock, columns, 3);
    const Inputs x(type(), kRows, columns, 4);
    const std::vector<float> all = product(kernels(), weights.view(), 0, kInt8OutputBlock, x.view(), kRows);
    for (const int rows : {1, 2, 9, 16, 33}) {
      for (const int outputs : {1, 7, 33, 64}) {
        const int first = kInt8OutputBlock - outputs;
        for (int m = 0; m + rows <= kRows; m += 11) {
          const std::vector<float> some = product(kernels(), weights.view(), first, outputs, x.view().from(m), rows);
          for (int i = 0; i < rows; ++i) {
            ASSERT_EQ(0, std::memcmp(&some[static_cast<std::size_t>(i * outputs)],
                                     &all[static_cast<std::size_t>((m + i) * kInt8OutputBlock + first)],
                                     static_cast<std::size_t>(outputs) * sizeof(float)))
                << columns << " columns, " << rows << " rows from " << m << ", " << outputs << " outputs";
          }
        }
      }
    }
  }
}

TEST_P(Int8Product, IsExactAtTheExtremesOfAllCodes) {
  // Every sum of a group's products is the largest there can be; -128 is no code of ours, but a file may hold it.
  constexpr int kColumns = 256;
  const std::vector<int> extremes =
      type() == WeightType::kQ8 ? std::vector<int>{127, -127, -128} : std::vector<int>{0, 15};
  for (const int code : extremes) {
    for (const int sign : {1, -1}) {
      for (const int rows : {1, 16}) {
        const std::vector<std::int8_t> q8_codes(kColumns, static_cast<std::int8_t>(code));
        const std::vector<f16> ones(8, to_f16(1));
        const std::vector<std::uint8_t> q4_codes(kColumns / 2, static_cast<std::uint8_t>(code | (code << 4)));
        const std::vector<std::uint8_t> scales(8, 1);
        const std::vector<std::uint8_t> minimums(8, 2);
        Matrix matrix;
        matrix.type = type();
        matrix.rows = 1;
        matrix.columns = kColumns;
        matrix.q8 = {q8_codes.data(), ones.data()};
        matrix.q4 = {q4_codes.data(), scales.data(), minimums.data(), ones.data(), ones.data()};
        Inputs x(type(), rows, kColumns, 1);
        for (int m = 0; m < rows; ++m) {
          std::fill_n(&x.floats[static_cast<std::size_t>(m) * kColumns], kColumns, static_cast<float>(127 * sign));
          x.memory.quantise(m, x.row(m), kColumns, type());
        }
        const int weight = type() == WeightType::kQ8 ? code : code - 2;
        for (const float sum : product(kernels(), matrix, 0, 1, x.view(), rows)) {
          EXPECT_EQ(sum, static_cast<float>(kColumns * 127 * sign * weight)) << code;
        }
      }
    }
  }
}

TEST_P(Int8Product, OfScalesOrInputsThatAreNotFiniteIsNotANumberInThatOutputAlone) {
  constexpr int kColumns = 288;
  for (const int rows : {2, 16}) {
    const QuantisedMatrix weights(type(), 3, kColumns, 5);
    const f16 bad[] = {{0x7c00}, {0xfc00}, {0x7e00}};
    for (const f16 scale : bad) {
      Matrix matrix = weights.view();
      std::vector<f16> scales(3 * 9, to_f16(1));
      if (type() == WeightType::kQ8) {
        scales[9] = scale;
        matrix.q8.scales = scales.data();
      } else {
        scales[2] = scale;
        matrix.q4.d = scales.data();
      }
      Inputs x(type(), rows, kColumns, 6);
      const std::vector<float> out = product(kernels(), matrix, 0, 3, x.view(), rows);
      for (int m = 0; m < rows; ++m) {
        EXPECT_TRUE(std::isfinite(out[static_cast<std::size_t>(m * 3)]));
        EXPECT_FALSE(std::isfinite(out[static_cast<std::size_t>(m * 3 + 1)]));
        EXPECT_TRUE(std::isfinite(out[static_cast<std::size_t>(m * 3 + 2)]));
      }
    }
    Inputs x(type(), rows, kColumns, 7);
    x.floats[kColumns + 40] = std::numeric_limits<float>::infinity();
    x.memory.quantise(1, x.row(1), kColumns, type());
    const std::vector<float> out = product(kernels(), weights.view(), 0, 3, x.view(), rows);
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < 3; ++n) EXPECT_EQ(std::isfinite(out[static_cast<std::size_t>(m * 3 + n)]), m != 1);
    }
  }
}

}  // namespace
}  // namespace gemma
