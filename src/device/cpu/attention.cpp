#include "device/cpu/attention.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "device/attention_mask.h"
#include "device/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/attention.cpp"
// foreach_target.h must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/cache_control.h>
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
constexpr int kBlockVectors = kPagePositions / kLanes;

// Queries and vectors of a register tile: accumulators and one row of keys or values fit into the registers.
constexpr int kTileVectors = 4;
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kTileQueries = 6;
#else
constexpr int kTileQueries = 2;
#endif

HWY_INLINE Vector load(const float* x) { return hn::LoadU(Floats(), x); }

HWY_INLINE Vector load(const bf16* x) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(Floats(), to_float(*x));
#else
  const hn::Rebind<std::uint16_t, Floats> half;
  const hn::RebindToUnsigned<Floats> words;
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(half, &x->bits))));
#endif
}

HWY_INLINE Vector load(const std::int8_t* x) {
  const hn::Rebind<std::int8_t, Floats> bytes;
  const hn::RebindToSigned<Floats> words;
  return hn::ConvertTo(Floats(), hn::PromoteTo(words, hn::LoadU(bytes, x)));
}

/// c[r] += sum over k of a[r][k] * b[k], in ascending order of k.
/// @param a  [depth] for each of kRows rows.
/// @param b  [depth, b_stride], of which kVectors vectors are used.
/// @param c  the same number of vectors for each row.
/// @param ahead  like b: what is wanted after it, read ahead if kPrefetch.
template <int kRows, int kVectors, bool kPrefetch, typename T>
HWY_INLINE void multiply(const float* const* a, int depth, const T* HWY_RESTRICT b, int b_stride, const T* ahead,
                         float* const* c) {
  const Floats d;
  Vector sums[kRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::LoadU(d, c[r] + v * kLanes);
  }
  for (int k = 0; k < depth; ++k, b += b_stride, ahead += b_stride) {
    if constexpr (kPrefetch) {
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) hwy::Prefetch(ahead + v * kLanes);
    }
    Vector row[kVectors];
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const Vector factor = hn::Set(d, a[r][k]);
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, row[v], sums[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, c[r] + v * kLanes);
  }
}

/// The same for any number of columns that is a multiple of 16.
template <int kRows, bool kPrefetch, typename T>
HWY_INLINE void multiply_columns(const float* const* a, int depth, const T* b, int columns, const T* ahead,
                                 float* const* c) {
  float* at[kRows];
  int column = 0;
  for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes) {
    for (int r = 0; r < kRows; ++r) at[r] = c[r] + column;
    multiply<kRows, kTileVectors, kPrefetch>(a, depth, b + column, columns, ahead + column, at);
  }
  for (; column < columns; column += kLanes) {
    for (int r = 0; r < kRows; ++r) at[r] = c[r] + column;
    multiply<kRows, 1, kPrefetch>(a, depth, b + column, columns, ahead + column, at);
  }
}

/// Turns one query's scores of a block into weights exp(score - max), 0 where the key is masked, and scales its sums to
/// the new maximum.
/// @param visible_begin, visible_end  keys of the block that the query sees; none if they are equal.
HWY_INLINE void soften(const AttentionShape& shape, float* scores, int visible_begin, int visible_end,
                       AttentionSums& sums) {
  const Floats d;
  const Vector begin = hn::Set(d, static_cast<float>(visible_begin));
  const Vector end = hn::Set(d, static_cast<float>(visible_end));
  const Vector cap = hn::Set(d, shape.softcap);
  const Vector masked = hn::Set(d, kMaskedScore);
  Vector maxima = masked;
  for (int v = 0; v < kBlockVectors; ++v) {
    Vector score = load(scores + v * kLanes);
    if (shape.softcap > 0) score = hn::Mul(cap, hn::Tanh(d, hn::Div(score, cap)));
    const Vector key = hn::Iota(d, static_cast<float>(v * kLanes));
    score = hn::IfThenElse(hn::And(hn::Ge(key, begin), hn::Lt(key, end)), score, masked);
    maxima = hn::Max(maxima, score);
    hn::StoreU(score, d, scores + v * kLanes);
  }
  const float max = std::max(sums.max, hn::GetLane(hn::MaxOfLanes(d, maxima)));

  const Vector shift = hn::Set(d, max);
  Vector total = hn::Zero(d);
  for (int v = 0; v < kBlockVectors; ++v) {
    const Vector key = hn::Iota(d, static_cast<float>(v * kLanes));
    const Vector weight = hn::IfThenElseZero(hn::And(hn::Ge(key, begin), hn::Lt(key, end)),
                                             hn::Exp(d, hn::Sub(load(scores + v * kLanes), shift)));
    total = hn::Add(total, weight);
    hn::StoreU(weight, d, scores + v * kLanes);
  }

  const float scale = hn::GetLane(hn::Exp(d, hn::Set(d, sums.max - max)));
  sums.max = max;
  sums.sum = sums.sum * scale + hn::GetLane(hn::SumOfLanes(d, total));
  const Vector factor = hn::Set(d, scale);
  for (int i = 0; i < shape.head_dim; i += kLanes) hn::StoreU(hn::Mul(load(sums.out + i), factor), d, sums.out + i);
}

/// Keys and values of a block.
template <typename T>
struct TypedBlock {
  const T* keys;       // [head_dim, kPagePositions]
  const T* values;     // [kPagePositions, head_dim]
  const T* next_keys;  // of the block that comes next

  // In q8, behind the codes.
  const float* key_scales(int head_dim) const { return scales_behind(keys, head_dim); }      // [kPagePositions]
  const float* value_scales(int head_dim) const { return scales_behind(values, head_dim); }  // [kPagePositions]

 private:
  static const float* scales_behind(const T* codes, int head_dim) {
    return reinterpret_cast<const float*>(codes + static_cast<std::size_t>(kPagePositions) * head_dim);
  }
};

/// Multiplies a block's scores or weights by the scales of its keys or values.
HWY_INLINE void scale_each(float* x, const float* scales) {
  for (int v = 0; v < kBlockVectors; ++v) {
    hn::StoreU(hn::Mul(load(x + v * kLanes), load(scales + v * kLanes)), Floats(), x + v * kLanes);
  }
}

/// One block for kRows queries; the first queries of a block fetch it from afar.
template <int kRows, bool kPrefetch, typename T>
void attend_tile(const AttentionShape& shape, const Query* queries, const TypedBlock<T>& block, int first_position,
                 AttentionSums* sums) {
  const float* q[kRows];
  HWY_ALIGN float scores[kRows][kPagePositions] = {};
  float* score_rows[kRows];
  int begin = kPagePositions;
  int end = 0;
  int begins[kRows];
  int ends[kRows];
  for (int r = 0; r < kRows; ++r) {
    q[r] = queries[r].q;
    score_rows[r] = scores[r];
    begins[r] = std::clamp(first_visible(queries[r].position, shape.window) - first_position, 0, kPagePositions);
    ends[r] = std::clamp(queries[r].position + 1 - first_position, begins[r], kPagePositions);
    if (begins[r] == ends[r]) continue;
    begin = std::min(begin, begins[r]);
    end = std::max(end, ends[r]);
  }
  if (begin >= end) return;

  multiply_columns<kRows, kPrefetch>(q, shape.head_dim, block.keys, kPagePositions, block.values, score_rows);
  float* outs[kRows];
  const float* weights[kRows];
  constexpr bool kHasScales = std::is_same_v<T, std::int8_t>;
  for (int r = 0; r < kRows; ++r) {
    if constexpr (kHasScales) scale_each(scores[r], block.key_scales(shape.head_dim));
    soften(shape, scores[r], begins[r], ends[r], sums[r]);
    if constexpr (kHasScales) scale_each(scores[r], block.value_scales(shape.head_dim));
    outs[r] = sums[r].out;
    weights[r] = scores[r] + begin;
  }
  const std::size_t skipped = static_cast<std::size_t>(begin) * shape.head_dim;
  multiply_columns<kRows, kPrefetch>(weights, end - begin, block.values + skipped, shape.head_dim,
                                     block.next_keys + skipped, outs);
}

/// As many queries as a tile takes. @return how many
template <bool kPrefetch, typename T>
HWY_INLINE std::size_t attend_some(const AttentionShape& shape, std::span<const Query> queries,
                                   const TypedBlock<T>& block, int first_position, AttentionSums* sums) {
  if (queries.size() >= kTileQueries) {
    attend_tile<kTileQueries, kPrefetch>(shape, queries.data(), block, first_position, sums);
    return kTileQueries;
  }
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
  if (queries.size() >= 4) {
    attend_tile<4, kPrefetch>(shape, queries.data(), block, first_position, sums);
    return 4;
  }
  if (queries.size() >= 2) {
    attend_tile<2, kPrefetch>(shape, queries.data(), block, first_position, sums);
    return 2;
  }
#endif
  attend_tile<1, kPrefetch>(shape, queries.data(), block, first_position, sums);
  return 1;
}

template <typename T>
void attend_blocks(const AttentionShape& shape, std::span<const Query> queries, std::span<const KvBlock> blocks,
                   int first_position, std::span<AttentionSums> sums) {
  for (std::size_t i = 0; i < blocks.size(); ++i, first_position += kPagePositions) {
    const KvBlock& next = blocks[std::min(i + 1, blocks.size() - 1)];
    const TypedBlock<T> block{reinterpret_cast<const T*>(blocks[i].keys), reinterpret_cast<const T*>(blocks[i].values),
                              reinterpret_cast<const T*>(next.keys)};
    std::size_t done = attend_some<true>(shape, queries, block, first_position, sums.data());
    while (done < queries.size())
      done += attend_some<false>(shape, queries.subspan(done), block, first_position, &sums[done]);
  }
}

void attend_span(const AttentionShape& shape, std::span<const Query> queries, std::span<const KvBlock> blocks,
                 int first_position, std::span<AttentionSums> sums) {
  for (AttentionSums& s : sums) gemma::clear_sums(s, shape.head_dim);
  switch (shape.type) {
    case KvType::kF32:
      return attend_blocks<float>(shape, queries, blocks, first_position, sums);
    case KvType::kBf16:
      return attend_blocks<bf16>(shape, queries, blocks, first_position, sums);
    case KvType::kQ8:
      return attend_blocks<std::int8_t>(shape, queries, blocks, first_position, sums);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gemma
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma {

HWY_EXPORT(attend_span);

void clear_sums(AttentionSums& sums, int head_dim) {
  sums.max = kMaskedScore;
  sums.sum = 0;
  std::fill_n(sums.out, head_dim, 0.0f);
}

void attend_span(const AttentionShape& shape, std::span<const Query> queries, std::span<const KvBlock> blocks,
                 int first_position, std::span<AttentionSums> sums) {
  assert(queries.size() == sums.size());
  HWY_DYNAMIC_DISPATCH(attend_span)(shape, queries, blocks, first_position, sums);
}

void merge_sums(AttentionSums& sums, const AttentionSums& later, int head_dim) {
  const float max = std::max(sums.max, later.max);
  const float scale = std::exp(sums.max - max);
  const float later_scale = std::exp(later.max - max);
  sums.max = max;
  sums.sum = sums.sum * scale + later.sum * later_scale;
  for (int i = 0; i < head_dim; ++i) sums.out[i] = sums.out[i] * scale + later.out[i] * later_scale;
}

void finish_sums(const AttentionSums& sums, int head_dim, float* out) {
  for (int i = 0; i < head_dim; ++i) out[i] = sums.out[i] / sums.sum;
}

}  // namespace gemma
#endif
