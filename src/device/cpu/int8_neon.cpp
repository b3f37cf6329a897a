// Products of int8 with the NEON of every 64-bit Arm.
#include "device/cpu/int8_targets.h"

#if defined(__aarch64__)

#include "device/cpu/int8_kernels-inl.h"
#include "device/cpu/int8_neon-inl.h"

namespace gemma {
namespace {

struct MultiplyAndWiden {
  // With |codes| at most 128 and |x| at most 127 the sum of two products fits into 16 bits: 2 * 128 * 127 < 2^15.
  static HWY_INLINE int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x16_t x) {
    const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
    const int16x8_t high = vmull_s8(vget_high_s8(codes), vget_high_s8(x));
    return vaddq_s32(sum, vpaddlq_s16(vpaddq_s16(low, high)));
  }
};

}  // namespace

const Int8Kernels kInt8Neon{"NEON", int8::multiply<int8::Neon<MultiplyAndWiden>>};

}  // namespace gemma

#endif
