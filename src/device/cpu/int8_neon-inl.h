// Lanes of NEON. Included like int8_kernels-inl.h, before it. Dot tells how bytes are multiplied and is a type of the
// including file's own.
#pragma once

#include <arm_neon.h>
#include <hwy/base.h>

#include <cstdint>

#include "model/f16.h"

namespace gemma {
namespace int8 {

template <typename Dot>
struct NeonFour {
  using Ints = int32x4_t;
  using Floats = float32x4_t;
  static constexpr int kLanes = 4;

  static HWY_INLINE Ints load_ints(const std::uint32_t* from) { return vreinterpretq_s32_u32(vld1q_u32(from)); }
  static HWY_INLINE Ints set_int(int x) { return vdupq_n_s32(x); }
  static HWY_INLINE Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }
  static HWY_INLINE Floats load(const float* from) { return vld1q_f32(from); }
  static HWY_INLINE void store(Floats x, float* to) { vst1q_f32(to, x); }
  static HWY_INLINE Floats set(float x) { return vdupq_n_f32(x); }
  static HWY_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static HWY_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static HWY_INLINE Floats mul_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static HWY_INLINE Floats neg_mul_add(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
  static HWY_INLINE Ints dot_q8(Ints sum, Ints codes, Ints x) {
    return Dot::dot(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
  }
  static HWY_INLINE Ints dot_q4(Ints sum, Ints codes, Ints x) { return dot_q8(sum, codes, x); }
};

template <typename Dot>
struct NeonEight {
  using Four = NeonFour<Dot>;
  struct Ints {
    int32x4_t low, high;
  };
  struct Floats {
    float32x4_t low, high;
  };

  static HWY_INLINE Floats to_floats(Ints x) { return {vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)}; }
  static HWY_INLINE Floats load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
  static HWY_INLINE void store(Floats x, float* to) {
    vst1q_f32(to, x.low);
    vst1q_f32(to + 4, x.high);
  }
  static HWY_INLINE Floats set(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static HWY_INLINE float32x4_t convert(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
  static HWY_INLINE Floats load_f16(const f16* from) {
    return {convert(vld1_u16(&from[0].bits)), convert(vld1_u16(&from[4].bits))};
  }
  static HWY_INLINE Floats set_f16(const f16* from) {
    const float32x4_t all = convert(vdup_n_u16(from->bits));
    return {all, all};
  }
  static HWY_INLINE Floats load_bytes(const std::uint8_t* from) {
    const uint16x8_t words = vmovl_u8(vld1_u8(from));
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(words)))};
  }
  static HWY_INLINE Floats mul(Floats a, Floats b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static HWY_INLINE Floats mul_add(Floats a, Floats b, Floats c) {
    return {Four::mul_add(a.low, b.low, c.low), Four::mul_add(a.high, b.high, c.high)};
  }
  static HWY_INLINE Floats neg_mul_add(Floats a, Floats b, Floats c) {
    return {Four::neg_mul_add(a.low, b.low, c.low), Four::neg_mul_add(a.high, b.high, c.high)};
  }

  /// Sums over the four lanes of each of eight vectors.
  static HWY_INLINE Ints sum_fours(const int32x4_t (&sums)[8]) {
    return {vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])),
            vpaddq_s32(vpaddq_s32(sums[4], sums[5]), vpaddq_s32(sums[6], sums[7]))};
  }
  static HWY_INLINE Ints dots_q8(const std::int8_t* codes, const std::int8_t* x, const std::int32_t*) {
    int32x4_t sums[8];
    HWY_UNROLL(8)
    for (int group = 0; group < 8; ++group) {
      const std::int8_t* w = codes + 32 * group;
      const std::int8_t* inputs = x + 32 * group;
      sums[group] = Dot::dot(vdupq_n_s32(0), vld1q_s8(w), vld1q_s8(inputs));
      sums[group] = Dot::dot(sums[group], vld1q_s8(w + 16), vld1q_s8(inputs + 16));
    }
    return sum_fours(sums);
  }
  static HWY_INLINE Ints dots_q4(const std::uint8_t* codes, const std::int8_t* x) {
    int32x4_t sums[8];
    HWY_UNROLL(8)
    for (int group = 0; group < 8; ++group) {
      const uint8x16_t both = vld1q_u8(codes + 16 * group);
      const std::int8_t* inputs = x + group / 4 * 128 + group % 4 * 16;
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(0x0f)));
      const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
      sums[group] = Dot::dot(vdupq_n_s32(0), low, vld1q_s8(inputs));
      sums[group] = Dot::dot(sums[group], high, vld1q_s8(inputs + 64));
    }
    return sum_fours(sums);
  }
};

template <typename Dot>
struct Neon {
  using Eight = NeonEight<Dot>;
  using Wide = NeonFour<Dot>;
  static constexpr int kTileRows = 8;
  static constexpr int kFewestTiledRows = 12;
  static constexpr std::uint32_t kCodeFlip = 0;
};

}  // namespace int8
}  // namespace gemma
