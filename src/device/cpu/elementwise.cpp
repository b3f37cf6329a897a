#include "device/cpu/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "device/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/elementwise.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace gemma {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vector = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(HWY_LANES(float));
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The functions below work on whole vectors; a rest goes through a zero-padded vector, so that an element's result does
// not depend on where in the row it stands.
HWY_INLINE Vector load_rest(const float* x, int count) {
  float padded[kLanes] = {};
  std::copy_n(x, count, padded);
  return hn::LoadU(Floats(), padded);
}

HWY_INLINE void store_rest(Vector v, float* x, int count) {
  float padded[kLanes];
  hn::StoreU(v, Floats(), padded);
  std::copy_n(padded, count, x);
}

float inverse_rms(const float* x, int count, float eps) {
  const Floats d;
  // Four sums hide the latency of the additions.
  Vector sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  int i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    HWY_UNROLL(4)
    for (int j = 0; j < 4; ++j) {
      const Vector v = hn::LoadU(d, x + i + j * kLanes);
      sums[j] = hn::MulAdd(v, v, sums[j]);
    }
  }
  for (; i < count; i += kLanes) {
    const Vector v = i + kLanes <= count ? hn::LoadU(d, x + i) : load_rest(x + i, count - i);
    sums[0] = hn::MulAdd(v, v, sums[0]);
  }
  const Vector sum = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  return 1.0f / std::sqrt(hn::GetLane(hn::SumOfLanes(d, sum)) / static_cast<float>(count) + eps);
}

void rms_norm(const float* x, const float* weight, int count, float eps, float* out) {
  const Floats d;
  const Vector factor = hn::Set(d, inverse_rms(x, count, eps));
  const Vector one = hn::Set(d, 1.0f);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector normalised = hn::Mul(hn::LoadU(d, x + i), factor);
    hn::StoreU(hn::Mul(normalised, hn::Add(one, hn::LoadU(d, weight + i))), d, out + i);
  }
  if (i < count) {
    const Vector normalised = hn::Mul(load_rest(x + i, count - i), factor);
    store_rest(hn::Mul(normalised, hn::Add(one, load_rest(weight + i, count - i))), out + i, count - i);
  }
}

void add_rms_norm(const float* y, const float* weight, int count, float eps, float* x) {
  const Floats d;
  const Vector factor = hn::Set(d, inverse_rms(y, count, eps));
  const Vector one = hn::Set(d, 1.0f);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector normalised = hn::Mul(hn::LoadU(d, y + i), factor);
    hn::StoreU(hn::MulAdd(normalised, hn::Add(one, hn::LoadU(d, weight + i)), hn::LoadU(d, x + i)), d, x + i);
  }
  if (i < count) {
    const Vector normalised = hn::Mul(load_rest(y + i, count - i), factor);
    const Vector sum =
        hn::MulAdd(normalised, hn::Add(one, load_rest(weight + i, count - i)), load_rest(x + i, count - i));
    store_rest(sum, x + i, count - i);
  }
}

/// head_dim / 2 is a multiple of 8, which is not a whole vector everywhere.
void rotate(float* x, int head_dim, const float* cos, const float* sin, float scale) {
  const hn::CappedTag<float, 8> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int half = head_dim / 2;
  const auto factor = hn::Set(d, scale);
  for (int i = 0; i < half; i += lanes) {
    const auto first = hn::LoadU(d, x + i);
    const auto second = hn::LoadU(d, x + half + i);
    const auto c = hn::LoadU(d, cos + i);
    const auto s = hn::LoadU(d, sin + i);
    hn::StoreU(hn::Mul(factor, hn::NegMulAdd(second, s, hn::Mul(first, c))), d, x + i);
    hn::StoreU(hn::Mul(factor, hn::MulAdd(first, s, hn::Mul(second, c))), d, x + half + i);
  }
}

HWY_INLINE Vector geglu_of(Vector gate, Vector up) {
  const Floats d;
  const Vector root = hn::Set(d, 0.7978845608028654f);  // sqrt(2 / pi)
  const Vector inner = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), hn::Mul(gate, gate)), gate, gate);
  const Vector tanh = hn::Tanh(d, hn::Mul(root, inner));
  return hn::Mul(hn::Mul(hn::Mul(hn::Set(d, 0.5f), gate), hn::Add(hn::Set(d, 1.0f), tanh)), up);
}

void geglu(const float* gate, const float* up, int count, float* out) {
  const Floats d;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(geglu_of(hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, out + i);
  if (i < count) store_rest(geglu_of(load_rest(gate + i, count - i), load_rest(up + i, count - i)), out + i, count - i);
}

void softcap(float* x, int count, float cap) {
  const Floats d;
  const Vector factor = hn::Set(d, cap);
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::Mul(factor, hn::Tanh(d, hn::Div(hn::LoadU(d, x + i), factor))), d, x + i);
  }
  if (i < count)
    store_rest(hn::Mul(factor, hn::Tanh(d, hn::Div(load_rest(x + i, count - i), factor))), x + i, count - i);
}

/// NaN becomes minus infinity, infinity the largest number.
HWY_INLINE Vector usable(Vector x) {
  const Floats d;
  const Vector numbers = hn::IfThenElse(hn::Eq(x, x), x, hn::Set(d, kNothing));
  return hn::Min(numbers, hn::Set(d, std::numeric_limits<float>::max()));
}

double log_sum_exp(const float* x, int count) {
  const Floats d;
  const auto vector_at = [x, count](int i) HWY_ATTR {
    if (i + kLanes <= count) return usable(hn::LoadU(Floats(), x + i));
    float padded[kLanes];
    std::fill(padded, padded + kLanes, kNothing);
    std::copy_n(x + i, count - i, padded);
    return usable(hn::LoadU(Floats(), padded));
  };

  Vector maxima = hn::Set(d, kNothing);
  for (int i = 0; i < count; i += kLanes) maxima = hn::Max(maxima, vector_at(i));
  const float max = hn::GetLane(hn::MaxOfLanes(d, maxima));
  if (max == kNothing) return max;

  const Vector shift = hn::Set(d, max);
  double total = 0;
  // Short stretches in float32, so that rounding errors cannot add up.
  constexpr int kStretch = 16 * kLanes;
  for (int begin = 0; begin < count; begin += kStretch) {
    Vector sum = hn::Zero(d);
    for (int i = begin; i < std::min(count, begin + kStretch); i += kLanes) {
      sum = hn::Add(sum, hn::Exp(d, hn::Sub(vector_at(i), shift)));
    }
    total += hn::GetLane(hn::SumOfLanes(d, sum));
  }
  return max + std::log(total);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gemma
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma {

HWY_EXPORT(rms_norm);
HWY_EXPORT(add_rms_norm);
HWY_EXPORT(rotate);
HWY_EXPORT(geglu);
HWY_EXPORT(softcap);
HWY_EXPORT(log_sum_exp);

void rms_norm(std::span<const float> x, std::span<const float> weight, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x.data(), weight.data(), static_cast<int>(x.size()), eps, out);
}

void add_rms_norm(std::span<const float> y, std::span<const float> weight, float eps, float* x) {
  HWY_DYNAMIC_DISPATCH(add_rms_norm)(y.data(), weight.data(), static_cast<int>(y.size()), eps, x);
}

void rotate(float* x, int head_dim, const float* cos, const float* sin, float scale) {
  HWY_DYNAMIC_DISPATCH(rotate)(x, head_dim, cos, sin, scale);
}

void geglu(const float* gate, const float* up, int count, float* out) {
  HWY_DYNAMIC_DISPATCH(geglu)(gate, up, count, out);
}

void softcap(float* x, int count, float cap) { HWY_DYNAMIC_DISPATCH(softcap)(x, count, cap); }

double log_sum_exp(std::span<const float> x) {
  return HWY_DYNAMIC_DISPATCH(log_sum_exp)(x.data(), static_cast<int>(x.size()));
}

}  // namespace gemma
#endif
