// Products of int8 with AVX-VNNI, on processors without AVX-512.
#include "device/cpu/int8_targets.h"

#if defined(__x86_64__)

#include <hwy/base.h>
#include <immintrin.h>

#include <cstring>

#include "model/f16.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avxvnni")

#include "device/cpu/int8_avx2-inl.h"
#include "device/cpu/int8_kernels-inl.h"

namespace gemma {
namespace {

struct AvxVnniDot {
  static constexpr std::uint32_t kCodeFlip = 0x80;

  static HWY_INLINE __m256i dot_q8(__m256i sum, __m256i codes, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, codes, x);
  }
  static HWY_INLINE __m256i dot_q4(__m256i sum, __m256i codes, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, codes, x);
  }
};

struct AvxVnni {
  using Eight = int8::Avx2Lanes<AvxVnniDot>;
  using Wide = Eight;
  static constexpr int kTileRows = 4;
  static constexpr int kFewestTiledRows = 12;
  static constexpr std::uint32_t kCodeFlip = AvxVnniDot::kCodeFlip;
};

}  // namespace

const Int8Kernels kInt8AvxVnni{"AVX-VNNI", int8::multiply<AvxVnni>};

}  // namespace gemma

HWY_POP_ATTRIBUTES

#endif
