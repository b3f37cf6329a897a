#include "device/cpu/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "unit/cpu/every_target.h"
#include "unit/cpu/guarded_memory.h"

namespace gemma {
namespace {

class Matmul : public EveryTarget {};
GEMMA_ON_EVERY_TARGET(Matmul);

/// A matrix that ends where readable memory ends.
class GuardedMatrix {
 public:
  GuardedMatrix(int rows, int columns, unsigned seed)
      : rows_(rows), columns_(columns), memory_(std::size_t{2} * rows * columns) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int i = 0; i < rows * columns; ++i) memory_.as<bf16>()[i] = to_bf16(normal(random));
  }

  Matrix view() const {
    return {.type = WeightType::kBf16, .rows = rows_, .columns = columns_, .data = memory_.as<const bf16>()};
  }

 private:
  int rows_;
  int columns_;
  GuardedMemory memory_;
};

/// Inputs as they are, and as matmul_block wants them.
struct Inputs {
  Inputs(int rows, int columns, unsigned seed)
      : stride(padded_columns(columns) + 32), plain(rows, columns, "test"), paired(rows, stride, "test") {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int m = 0; m < rows; ++m) {
      std::fill_n(paired.row(m), stride, std::nanf(""));  // what lies beyond the columns must not matter
      for (int k = 0; k < columns; ++k) plain.row(m)[k] = paired.row(m)[k] = normal(random);
      pair_up(paired.row(m), columns);
    }
  }
  int stride;
  FloatRows plain;
  FloatRows paired;
};

TEST_P(Matmul, AgreesWithDoublePrecisionForOddShapesAndReadsNothingBeyondTheWeights) {
  const MatmulScratch scratch;
  unsigned seed = 1;
  for (int columns : {1, 2, 15, 31, 32, 33, 64, 100, 320, 1281, 2600}) {
    for (int rows : {1, 2, 3, 4, 5, 7, 66}) {
      const int outputs = 1 + (rows * 7 + columns) % kOutputBlock;
      const GuardedMatrix weights(outputs, columns, seed++);
      const Inputs x(rows, columns, seed++);
      std::vector<float> out(static_cast<std::size_t>(rows) * outputs, std::nanf(""));
      matmul_block(weights.view(), 0, outputs, x.paired.data(), x.stride, rows, out.data(), outputs, scratch);
      for (int m = 0; m < rows; ++m) {
        for (int n = 0; n < outputs; ++n) {
          double sum = 0;
          double magnitude = 0;
          for (int k = 0; k < columns; ++k) {
            const double product = static_cast<double>(x.plain.row(m)[k]) * to_float(weights.view().row(n)[k]);
            sum += product;
            magnitude += std::abs(product);
          }
          // Each of the products meets at most `columns` additions, each of them with a relative error of 2^-24 (and
          // one of its own where there is no fused multiply-add).
          const double tolerance = (columns + 1) * 0x1p-24 * magnitude;
          ASSERT_NEAR(out[static_cast<std::size_t>(m) * outputs + n], sum, tolerance)
              << rows << " rows, " << columns << " columns, at " << m << ", " << n;
        }
      }
    }
  }
}

TEST_P(Matmul, GivesARowTheSameBitsAloneAndAmongOthersAndAnOutputTheSameInAnyBlock) {
  const MatmulScratch scratch;
  constexpr int kRows = 131;
  for (int columns : {33, 500, 2700}) {
    const GuardedMatrix weights(kOutputBlock, columns, 3);
    const Inputs x(kRows, columns, 4);
    std::vector<float> all(kRows * kOutputBlock);
    matmul_block(weights.view(), 0, kOutputBlock, x.paired.data(), x.stride, kRows, all.data(), kOutputBlock, scratch);
    for (int rows : {1, 2, 3, 5, 64}) {
      for (int outputs : {1, 7, 40}) {
        for (int m = 0; m + rows <= kRows; m += 13) {
          const int first = m % (kOutputBlock - outputs + 1);
          std::vector<float> some(static_cast<std::size_t>(rows) * outputs);
          matmul_block(weights.view(), first, outputs, x.paired.row(m), x.stride, rows, some.data(), outputs, scratch);
          for (int i = 0; i < rows; ++i) {
            ASSERT_EQ(0, std::memcmp(&some[static_cast<std::size_t>(i) * outputs], &all[(m + i) * kOutputBlock + first],
                                     outputs * sizeof(float)))
                << columns << " columns, " << rows << " rows from " << m << ", " << outputs << " outputs from "
                << first;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace gemma
