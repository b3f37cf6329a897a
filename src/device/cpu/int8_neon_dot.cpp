// Products of int8 with NEON's dot products. Compiled for them as a whole, because clang declares their intrinsics only
// then.
#include "device/cpu/int8_targets.h"

#if defined(__aarch64__)

#include "device/cpu/int8_kernels-inl.h"
#include "device/cpu/int8_neon-inl.h"

namespace gemma {
namespace {

struct DotProduct {
  static HWY_INLINE int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x16_t x) { return vdotq_s32(sum, codes, x); }
};

}  // namespace

const Int8Kernels kInt8NeonDot{"NEON with dot products", int8::multiply<int8::Neon<DotProduct>>};

}  // namespace gemma

#endif
