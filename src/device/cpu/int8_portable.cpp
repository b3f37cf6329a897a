// Products of int8 in plain C++, for processors that have nothing better.
#include <cmath>
#include <cstring>

#include "device/cpu/int8_kernels-inl.h"
#include "device/cpu/int8_targets.h"
#include "model/f16.h"

namespace gemma {
namespace {

struct PortableEight {
  struct Ints {
    std::int32_t lanes[8];
  };
  struct Floats {
    float lanes[8];
  };

  template <typename Value>
  static Floats make(Value&& value) {
    Floats made;
    for (int i = 0; i < 8; ++i) made.lanes[i] = value(i);
    return made;
  }
  static Floats to_floats(Ints x) {
    return make([&](int i) { return static_cast<float>(x.lanes[i]); });
  }
  static Floats load(const float* from) {
    return make([&](int i) { return from[i]; });
  }
  static void store(Floats x, float* to) { std::memcpy(to, x.lanes, sizeof(x.lanes)); }
  static Floats set(float x) {
    return make([&](int) { return x; });
  }
  static Floats load_f16(const f16* from) {
    return make([&](int i) { return to_float(from[i]); });
  }
  static Floats set_f16(const f16* from) { return set(to_float(*from)); }
  static Floats load_bytes(const std::uint8_t* from) {
    return make([&](int i) { return static_cast<float>(from[i]); });
  }
  static Floats mul(Floats a, Floats b) {
    return make([&](int i) { return a.lanes[i] * b.lanes[i]; });
  }
  static Floats mul_add(Floats a, Floats b, Floats c) {
    return make([&](int i) { return std::fma(a.lanes[i], b.lanes[i], c.lanes[i]); });
  }
  static Floats neg_mul_add(Floats a, Floats b, Floats c) {
    return make([&](int i) { return std::fma(-a.lanes[i], b.lanes[i], c.lanes[i]); });
  }

  static Ints dots_q8(const std::int8_t* codes, const std::int8_t* x, const std::int32_t*) {
    Ints dots = {};
    for (int i = 0; i < kBlockColumns; ++i) dots.lanes[i / kGroupColumns] += codes[i] * x[i];
    return dots;
  }
  static Ints dots_q4(const std::uint8_t* codes, const std::int8_t* x) {
    Ints dots = {};
    for (int i = 0; i < kBlockColumns / 2; ++i) {
      const std::int8_t* inputs = x + i / 64 * 128 + i % 64;
      dots.lanes[i / 16] += (codes[i] & 0x0f) * inputs[0] + (codes[i] >> 4) * inputs[64];
    }
    return dots;
  }
};

struct Portable {
  using Eight = PortableEight;
  static constexpr int kTileRows = 0;
};

}  // namespace

const Int8Kernels kInt8Portable{"portable", int8::multiply<Portable>};

}  // namespace gemma
