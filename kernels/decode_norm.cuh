#pragma once

// What is between two products of the decode step: the residual stream takes in what the last product gave, after its
// norm, and is normalised to be the next product's input. Every thread block does it for itself.

#include "decode_block.cuh"
#include "decode_product.cuh"

namespace gemma {

/// The next four elements of a row of the residual stream: what was there, and what the last product adds to it after
/// its own norm. Rounded the same way wherever it is computed.
struct ResidualRow {
  const float* residual;           // [hidden]; nullptr in the first layer, where `embedding` is the residual
  const __nv_bfloat16* embedding;  // [hidden]
  float embedding_scale;
  const float* added;       // [hidden]: what the last product gave
  const float* added_norm;  // [hidden]

  __device__ float4 added_at(int unit) const {
    if (residual == nullptr) return {};
    return __ldcg(reinterpret_cast<const float4*>(added) + unit);
  }

  __device__ float4 old_at(int unit) const {
    if (residual != nullptr) return __ldcg(reinterpret_cast<const float4*>(residual) + unit);
    const uint2 four = __ldg(reinterpret_cast<const uint2*>(embedding) + unit);
    return {low_half(four.x) * embedding_scale, high_half(four.x) * embedding_scale, low_half(four.y) * embedding_scale,
            high_half(four.y) * embedding_scale};
  }

  __device__ float4 sum(const float4& old, const float4& more, float added_scale, const float4& norm) const {
    if (residual == nullptr) return old;
    return {fmaf(__fmul_rn(more.x, added_scale), 1.0f + norm.x, old.x),
            fmaf(__fmul_rn(more.y, added_scale), 1.0f + norm.y, old.y),
            fmaf(__fmul_rn(more.z, added_scale), 1.0f + norm.z, old.z),
            fmaf(__fmul_rn(more.w, added_scale), 1.0f + norm.w, old.w)};
  }
};

__device__ inline float add_squares(float sum, const float4& v) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

/// Sums over a row, always in the same order: a row is dealt out in units of four elements to 8 segments of 32 lanes;
/// each lane adds up its units, each segment its lanes, then the segments in order. One row is shared by all warps, of
/// many each warp has one. @param lane_sum  the sum over units begin, begin + kConsumers, begin + 2 * kConsumers, ...
template <int kRows, class LaneSum>
__device__ float row_sum(float* shared_sums, const LaneSum& lane_sum) {
  float total = 0;
  if constexpr (kRows == 1) {
    const float sum = warp_sum(lane_sum(static_cast<int>(threadIdx.x)));
    consumer_barrier();  // the sums of the time before have been read
    if (lane_index() == 0) shared_sums[warp_index()] = sum;
    consumer_barrier();
    for (int segment = 0; segment < kConsumerWarps; ++segment) total += shared_sums[segment];
  } else {
    for (int segment = 0; segment < kConsumerWarps; ++segment) total += warp_sum(lane_sum(segment * 32 + lane_index()));
  }
  return total;
}

/// A thread's share of one row's norm weights, held in registers: asked for before the wait for what they are applied
/// to.
struct NormWeights {
  static constexpr int kHeld = 5;  // units; a row of up to kHeld * 4 * kConsumers elements
  float4 added[kHeld], next[kHeld];

  __device__ static bool can_hold(int hidden) { return hidden <= kHeld * 4 * kConsumers; }

  __device__ void fetch(const float* added_norm, const float* next_norm, int hidden) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int unit = static_cast<int>(threadIdx.x) + j * kConsumers;
      if (4 * unit >= hidden) continue;
      if (added_norm != nullptr) added[j] = __ldg(reinterpret_cast<const float4*>(added_norm) + unit);
      next[j] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    }
  }
};

/// residual + RMSNorm(added) -> the new residual (written by block 0 alone) -> RMSNorm -> the next product's operand in
/// shared memory. One row is worked on by all consumers, of many rows each by one warp; both compute the same.
/// @param held  for one row, if it can hold one
template <int kRows>
__device__ void normalize_row(const Shared& shared, const ResidualRow& row, const float* norm, const NormWeights& held,
                              int row_index, int hidden, float eps, float* residual_out) {
  const int units = hidden / 4;
  const float inverse_hidden = 1.0f / static_cast<float>(hidden);
  const int first = kRows == 1 ? static_cast<int>(threadIdx.x) : lane_index();

  // A thread's share of a single row fits into registers; then memory is asked once, for everything together.
  constexpr int kHeld = kRows == 1 ? NormWeights::kHeld : 1;
  const bool is_held = kRows == 1 && NormWeights::can_hold(hidden);
  float4 old[kHeld], added[kHeld];
  if (is_held) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (first + j * kConsumers < units) {
        old[j] = row.old_at(first + j * kConsumers);
        added[j] = row.added_at(first + j * kConsumers);
      }
    }
  }
  // Visits units begin, begin + kConsumers, ... of the row: visit(unit, old residual, added, norm of the added, next
  // norm).
  const auto each_unit = [&](int begin, const auto& visit) {
    if (is_held) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (begin + j * kConsumers < units)
          visit(begin + j * kConsumers, old[j], added[j], held.added[j], held.next[j]);
      }
    } else {
      for (int unit = begin; unit < units; unit += kConsumers) {
        float4 before = row.old_at(unit);
        const float4 added_norm =
            row.residual == nullptr ? float4{} : __ldg(reinterpret_cast<const float4*>(row.added_norm) + unit);
        visit(unit, before, row.added_at(unit), added_norm, __ldg(reinterpret_cast<const float4*>(norm) + unit));
      }
    }
  };

  float added_scale = 0;
  if (row.residual != nullptr) {
    const float squares = row_sum<kRows>(shared.sums, [&](int begin) {
      float sum = 0;
      each_unit(begin,
                [&](int, float4&, const float4& more, const float4&, const float4&) { sum = add_squares(sum, more); });
      return sum;
    });
    added_scale = rsqrtf(fmaf(squares, inverse_hidden, eps));
  }
  const float squares = row_sum<kRows>(shared.sums, [&](int begin) {
    float sum = 0;
    each_unit(begin, [&](int, float4& before, const float4& more, const float4& added_norm, const float4&) {
      before = row.sum(before, more, added_scale, added_norm);
      sum = add_squares(sum, before);
    });
    return sum;
  });
  const float scale = rsqrtf(fmaf(squares, inverse_hidden, eps));

  __nv_bfloat16* operand = shared.operand + row_index * operand_pitch(hidden);
  for (int begin = first; begin < (kRows == 1 ? first + 1 : kConsumers); begin += 32) {
    each_unit(begin, [&](int unit, float4& before, const float4& more, const float4& added_norm, const float4& weight) {
      const float4 x = is_held ? before : row.sum(before, more, added_scale, added_norm);
      if (blockIdx.x == 0) __stcg(reinterpret_cast<float4*>(residual_out) + unit, x);
      store_pair(operand + operand_order(4 * unit), __fmul_rn(__fmul_rn(x.x, scale), 1.0f + weight.x),
                 __fmul_rn(__fmul_rn(x.y, scale), 1.0f + weight.y));
      store_pair(operand + operand_order(4 * unit + 2), __fmul_rn(__fmul_rn(x.z, scale), 1.0f + weight.z),
                 __fmul_rn(__fmul_rn(x.w, scale), 1.0f + weight.w));
    });
  }
}

}  // namespace gemma
