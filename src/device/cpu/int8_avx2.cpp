// Products of int8 with AVX2, whose dot product of bytes is signed by unsigned and saturates at 16 bits.
#include "device/cpu/int8_targets.h"

#if defined(__x86_64__)

#include <hwy/base.h>
#include <immintrin.h>

#include <cstring>

#include "model/f16.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c")

#include "device/cpu/int8_avx2-inl.h"
#include "device/cpu/int8_kernels-inl.h"

namespace gemma {
namespace {

struct Avx2Dot {
  static constexpr std::uint32_t kCodeFlip = 0;

  static HWY_INLINE __m256i sum_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // With |codes| at most 128 and |x| at most 127 no sum of two products leaves 16 bits: 2 * 128 * 127 < 2^15.
  static HWY_INLINE __m256i dot_q8(__m256i sum, __m256i codes, __m256i x) {
    return sum_pairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)));
  }
  static HWY_INLINE __m256i dot_q4(__m256i sum, __m256i codes, __m256i x) {
    return sum_pairs(sum, _mm256_maddubs_epi16(codes, x));
  }
};

struct Avx2 {
  using Eight = int8::Avx2Lanes<Avx2Dot>;
  using Wide = Eight;
  static constexpr int kTileRows = 4;
  static constexpr int kFewestTiledRows = 12;
  static constexpr std::uint32_t kCodeFlip = Avx2Dot::kCodeFlip;
};

}  // namespace

const Int8Kernels kInt8Avx2{"AVX2", int8::multiply<Avx2>};

}  // namespace gemma

HWY_POP_ATTRIBUTES

#endif
