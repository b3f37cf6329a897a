#include "model/encode.h"

#include <cassert>
#include <cmath>
#include <limits>

#include "model/bf16.h"
#include "model/f16.h"

namespace gemma {
namespace {

using gemma::to_float;

float to_float(float value) { return value; }

template <typename To>
To from_float(float value);
template <>
float from_float(float value) {
  return value;
}
template <>
bf16 from_float(float value) {
  return to_bf16(value);
}

template <typename From, typename To>
std::vector<std::byte> encode_as(std::span<const std::byte> bytes) {
  const std::span<const From> source(reinterpret_cast<const From*>(bytes.data()), bytes.size() / sizeof(From));
  std::vector<std::byte> encoded(source.size() * sizeof(To));
  To* const target = reinterpret_cast<To*>(encoded.data());

  // One test for the whole block keeps the loop free of branches; a bad element is looked for when there is one.
  bool is_finite = true;
  for (std::size_t i = 0; i < source.size(); ++i) {
    target[i] = from_float<To>(to_float(source[i]));
    is_finite &= std::fabs(to_float(target[i])) <= std::numeric_limits<float>::max();
  }
  if (is_finite) return encoded;
  for (std::size_t i = 0;; ++i) {
    const float value = to_float(source[i]);
    if (std::isnan(value)) throw NotFinite{i, "a NaN"};
    if (std::isinf(value)) throw NotFinite{i, "an infinity"};
    if (std::isinf(to_float(target[i]))) throw NotFinite{i, "a number too large for bf16"};
  }
}

template <typename To>
std::vector<std::byte> encode_from(std::span<const std::byte> source, DType from) {
  switch (from) {
    case DType::kBf16:
      return encode_as<bf16, To>(source);
    case DType::kF16:
      return encode_as<f16, To>(source);
    default:
      assert(from == DType::kF32);
      return encode_as<float, To>(source);
  }
}

}  // namespace

std::vector<std::byte> encode(std::span<const std::byte> source, DType from, DType to) {
  assert(to == DType::kBf16 || to == DType::kF32);
  return to == DType::kBf16 ? encode_from<bf16>(source, from) : encode_from<float>(source, from);
}

}  // namespace gemma
