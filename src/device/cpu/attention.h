#pragma once

#include <span>

#include "device/cpu/kv_store.h"
#include "device/device.h"

namespace gemma {

/// What all queries of a layer have in common.
struct AttentionShape {
  int head_dim = 0;
  float softcap = 0;  ///< s = softcap * tanh(s / softcap); 0: none
  int window = 0;     ///< kNoWindow in a global layer
  KvType type = KvType::kF32;
};

/// A query head of one row.
struct Query {
  const float* q = nullptr;  ///< [head_dim], rotated and scaled
  int position = 0;
};

/// What a query has gathered from the keys it has met: out / sum is the attention over them.
struct AttentionSums {
  float max = 0;         ///< of the scores
  float sum = 0;         ///< of exp(score - max)
  float* out = nullptr;  ///< [head_dim]: values weighted by exp(score - max)
};

/// Sums over no keys at all.
void clear_sums(AttentionSums& sums, int head_dim);

/// Attention of some queries of one KV head to the blocks of one span, in ascending order. For every query the same
/// arithmetic, whatever its company.
/// @param queries         at least one, in ascending order of position.
/// @param blocks          neighbouring blocks, all within one span of kSpanPositions.
/// @param first_position  of the first block.
/// @param sums            [queries], overwritten; those of a query that sees no key of the span are clear.
void attend_span(const AttentionShape& shape, std::span<const Query> queries, std::span<const KvBlock> blocks,
                 int first_position, std::span<AttentionSums> sums);

/// Adds the sums over a later span.
void merge_sums(AttentionSums& sums, const AttentionSums& later, int head_dim);

/// out = sums.out / sums.sum.
void finish_sums(const AttentionSums& sums, int head_dim, float* out);

}  // namespace gemma
