// Products of int8 with the VNNI instructions of AVX-512.
#include "device/cpu/int8_targets.h"

#if defined(__x86_64__)

#include <hwy/base.h>
#include <immintrin.h>

#include <cstring>

#include "model/f16.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "device/cpu/int8_avx2-inl.h"
#include "device/cpu/int8_kernels-inl.h"

namespace gemma {
namespace {

struct NoDot;

struct Eight : int8::Avx2Lanes<NoDot> {
  static HWY_INLINE __m512i load_line(const void* from) { return _mm512_loadu_si512(from); }

  /// Sums over four lanes: in each quarter of the result, those of the quarters of a, b, c and d.
  static HWY_INLINE __m512i sum_fours(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }

  static HWY_INLINE Ints dots_q8(const std::int8_t* codes, const std::int8_t* x, const std::int32_t* offsets) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i sums[4];  // of two groups each
    HWY_UNROLL(4)
    for (int pair = 0; pair < 4; ++pair) {
      const __m512i weights = _mm512_xor_si512(load_line(codes + 64 * pair), flip);
      sums[pair] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, load_line(x + 64 * pair));
    }
    // Two quarters of groups 0, 2, 4 and 6, and two of groups 1, 3, 5 and 7.
    const __m512i quarters = sum_fours(sums[0], sums[1], sums[2], sums[3]);
    const __m512i dots = _mm512_add_epi32(quarters, _mm512_shuffle_i32x4(quarters, quarters, 0xb1));
    const __m512i order = _mm512_castsi256_si512(_mm256_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11));
    return _mm256_add_epi32(_mm512_castsi512_si256(_mm512_permutexvar_epi32(order, dots)), load_ints(offsets));
  }

  static HWY_INLINE Ints dots_q4(const std::uint8_t* codes, const std::int8_t* x) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    __m512i sums[2];  // of four groups each
    HWY_UNROLL(2)
    for (int four = 0; four < 2; ++four) {
      const __m512i both = load_line(codes + 64 * four);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      sums[four] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(both, low), load_line(x + 128 * four));
      sums[four] = _mm512_dpbusd_epi32(sums[four], high, load_line(x + 128 * four + 64));
    }
    const __m512i halves =
        _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
    const __m512i dots = _mm512_add_epi32(halves, _mm512_shuffle_epi32(halves, _MM_PERM_BADC));
    const __m512i order = _mm512_castsi256_si512(_mm256_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, dots));
  }
};

struct Sixteen {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;

  static HWY_INLINE Ints load_ints(const void* from) { return _mm512_loadu_si512(from); }
  static HWY_INLINE Ints set_int(int x) { return _mm512_set1_epi32(x); }
  static HWY_INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static HWY_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static HWY_INLINE void store(Floats x, float* to) { _mm512_storeu_ps(to, x); }
  static HWY_INLINE Floats set(float x) { return _mm512_set1_ps(x); }
  static HWY_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static HWY_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static HWY_INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static HWY_INLINE Floats neg_mul_add(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static HWY_INLINE Ints dot_q8(Ints sum, Ints codes, Ints x) { return _mm512_dpbusd_epi32(sum, codes, x); }
  static HWY_INLINE Ints dot_q4(Ints sum, Ints codes, Ints x) { return _mm512_dpbusd_epi32(sum, codes, x); }
};

struct Avx512 {
  using Eight = gemma::Eight;
  using Wide = Sixteen;
  static constexpr int kTileRows = 8;
  static constexpr int kFewestTiledRows = 16;
  static constexpr std::uint32_t kCodeFlip = 0x80;
};

}  // namespace

const Int8Kernels kInt8Avx512{"AVX-512 VNNI", int8::multiply<Avx512>};

}  // namespace gemma

HWY_POP_ATTRIBUTES

#endif
