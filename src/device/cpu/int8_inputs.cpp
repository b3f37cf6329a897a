#include "device/cpu/int8_inputs.h"

#include <algorithm>
#include <cassert>

#include "device/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/int8_inputs.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace gemma {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;
using Bytes = hn::Rebind<std::int8_t, Floats>;

constexpr int kLanes = static_cast<int>(HWY_LANES(float));
constexpr int kVectors = kGroupColumns / kLanes;

/// Quantises one group. @param first, second  where the codes of each half of it go.
/// @return the sum of the codes
HWY_INLINE int quantise_group(const float* x, std::int8_t* first, std::int8_t* second, float* scale) {
  const Floats d;
  const Ints di;
  // Without their signs, floats are in the order of their bits, with infinity and then NaN at the end.
  hn::Vec<Ints> magnitudes = hn::Zero(di);
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    magnitudes = hn::Max(magnitudes, hn::BitCast(di, hn::Abs(hn::LoadU(d, x + i * kLanes))));
  }
  const float max = hn::GetLane(hn::BitCast(d, hn::MaxOfLanes(di, magnitudes)));
  const bool is_finite = max <= hwy::HighestValue<float>();
  // Its inverse would be infinite.
  const bool is_zero = max < 1e-36f;
  *scale = is_finite ? (is_zero ? 0.0f : max / 127.0f) : hwy::HighestValue<float>() - max;
  const hn::Vec<Floats> factor = hn::Set(d, !is_finite || is_zero ? 0.0f : 127.0f / max);

  // Adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits.
  const hn::Vec<Floats> round = hn::Set(d, 12582912.0f);
  hn::Vec<Ints> sum = hn::Zero(di);
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    const hn::Vec<Floats> scaled = hn::Mul(hn::LoadU(d, x + i * kLanes), factor);
    const hn::Vec<Ints> bits = hn::BitCast(di, hn::Add(scaled, round));
    hn::Vec<Ints> codes = hn::Sub(bits, hn::BitCast(di, round));
    if (!is_finite) codes = hn::Zero(di);
    sum = hn::Add(sum, codes);
    const int column = i * kLanes;
    std::int8_t* to = column < kGroupColumns / 2 ? first + column : second + column - kGroupColumns / 2;
    hn::StoreU(hn::DemoteTo(Bytes(), codes), Bytes(), to);
  }
  return hn::GetLane(hn::SumOfLanes(di, sum));
}

void quantise(const float* x, int columns, bool is_q4, std::int8_t* codes, float* scales, float* sums,
              std::int32_t* offsets) {
  const int groups = columns / kGroupColumns;
  for (int group = 0; group < groups; ++group) {
    std::int8_t* first = is_q4 ? codes + group / 4 * 128 + group % 4 * 16 : codes + group * kGroupColumns;
    std::int8_t* second = is_q4 ? first + 64 : first + kGroupColumns / 2;
    const int sum = quantise_group(x + group * kGroupColumns, first, second, scales + group);
    sums[group] = scales[group] * static_cast<float>(sum);
    offsets[group] = -128 * sum;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gemma
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma {

HWY_EXPORT(quantise);

Int8Memory::Int8Memory(int rows, int columns, const char* what) {
  const auto padded = static_cast<std::size_t>(rows) * static_cast<std::size_t>(padded_to_blocks(columns));
  const std::size_t groups = padded / kGroupColumns;
  codes_ = Memory(padded, what);
  scales_ = Memory(groups * sizeof(float), what);
  sums_ = Memory(groups * sizeof(float), what);
  offsets_ = Memory(groups * sizeof(std::int32_t), what);
}

double Int8Memory::row_bytes(int columns) { return padded_to_blocks(columns) * (1 + 12.0 / kGroupColumns); }

Int8Rows Int8Memory::rows(int columns) const {
  return {reinterpret_cast<const std::int8_t*>(codes_.data()), reinterpret_cast<const float*>(scales_.data()),
          reinterpret_cast<const float*>(sums_.data()), reinterpret_cast<const std::int32_t*>(offsets_.data()),
          padded_to_blocks(columns)};
}

void Int8Memory::quantise(int row, const float* x, int columns, WeightType type) {
  assert(columns % kGroupColumns == 0);
  const int padded = padded_to_blocks(columns);
  const auto column = static_cast<std::size_t>(row) * static_cast<std::size_t>(padded);
  const std::size_t group = column / kGroupColumns;
  auto* codes = reinterpret_cast<std::int8_t*>(codes_.data()) + column;
  auto* scales = reinterpret_cast<float*>(scales_.data()) + group;
  auto* sums = reinterpret_cast<float*>(sums_.data()) + group;
  auto* offsets = reinterpret_cast<std::int32_t*>(offsets_.data()) + group;
  const int groups = columns / kGroupColumns;
  const int padded_groups = padded / kGroupColumns;
  if (groups < padded_groups) {
    std::fill(codes + (columns / kBlockColumns * kBlockColumns), codes + padded, std::int8_t{0});
    std::fill(scales + groups, scales + padded_groups, 0.0f);
    std::fill(sums + groups, sums + padded_groups, 0.0f);
    std::fill(offsets + groups, offsets + padded_groups, 0);
  }
  HWY_DYNAMIC_DISPATCH(quantise)(x, columns, type == WeightType::kQ4, codes, scales, sums, offsets);
}

}  // namespace gemma
#endif
