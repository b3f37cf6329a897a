// Eight lanes of AVX2, for the instruction sets that have it. Included like int8_kernels-inl.h, before it.
// Dot tells how bytes are multiplied and is a type of the including file's own, so that each file compiles its own
// copies of these functions.
#pragma once

namespace gemma {
namespace int8 {

template <typename Dot>
struct Avx2Lanes {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;

  static HWY_INLINE Ints load_ints(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  static HWY_INLINE Ints set_int(int x) { return _mm256_set1_epi32(x); }
  static HWY_INLINE Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
  static HWY_INLINE Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static HWY_INLINE void store(Floats x, float* to) { _mm256_storeu_ps(to, x); }
  static HWY_INLINE Floats set(float x) { return _mm256_set1_ps(x); }
  static HWY_INLINE Floats load_f16(const f16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static HWY_INLINE Floats set_f16(const f16* from) {
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(from->bits)));
  }
  static HWY_INLINE Floats load_bytes(const std::uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  static HWY_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static HWY_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static HWY_INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static HWY_INLINE Floats neg_mul_add(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }

  static HWY_INLINE Ints dot_q8(Ints sum, Ints codes, Ints x) { return Dot::dot_q8(sum, codes, x); }
  static HWY_INLINE Ints dot_q4(Ints sum, Ints codes, Ints x) { return Dot::dot_q4(sum, codes, x); }

  static HWY_INLINE Ints dots_q8(const std::int8_t* codes, const std::int8_t* x, const std::int32_t* offsets) {
    const Ints flip = _mm256_set1_epi8(static_cast<char>(Dot::kCodeFlip));
    Ints sums[8];
    HWY_UNROLL(8)
    for (int group = 0; group < 8; ++group) {
      const Ints weights = _mm256_xor_si256(load_ints(codes + 32 * group), flip);
      sums[group] = Dot::dot_q8(_mm256_setzero_si256(), weights, load_ints(x + 32 * group));
    }
    const Ints first = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    const Ints second = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[4], sums[5]), _mm256_hadd_epi32(sums[6], sums[7]));
    // Each has the sums over the first halves of four groups, and then over their second halves.
    const Ints dots = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                       _mm256_permute2x128_si256(first, second, 0x31));
    return Dot::kCodeFlip == 0 ? dots : _mm256_add_epi32(dots, load_ints(offsets));
  }

  static HWY_INLINE Ints dots_q4(const std::uint8_t* codes, const std::int8_t* x) {
    const Ints low = _mm256_set1_epi8(0x0f);
    Ints sums[4];  // of two groups each
    HWY_UNROLL(4)
    for (int pair = 0; pair < 4; ++pair) {
      const Ints both = load_ints(codes + 32 * pair);
      const std::int8_t* inputs = x + pair / 2 * 128 + pair % 2 * 32;
      const Ints sum = Dot::dot_q4(_mm256_setzero_si256(), _mm256_and_si256(both, low), load_ints(inputs));
      sums[pair] = Dot::dot_q4(sum, _mm256_and_si256(_mm256_srli_epi16(both, 4), low), load_ints(inputs + 64));
    }
    // Groups 0, 2, 4, 6, then 1, 3, 5, 7.
    const Ints dots = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    return _mm256_permutevar8x32_epi32(dots, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
};

}  // namespace int8
}  // namespace gemma
