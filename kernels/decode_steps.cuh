#pragma once

// The steps of a layer as all decode kernels know them: which products there are, where they find their weights, and
// what the producer streams for attention.

#include "decode_attention.cuh"
#include "decode_block.cuh"
#include "stream.cuh"

namespace gemma {

// --- the products, of which a step has four a layer and the head's ---

enum class Kind { kQkv, kAttentionOut, kGateUp, kDown, kHead };

// One loop over all products, and not one call for each kind: the code stays small enough for the instruction cache.
__device__ inline Kind kind_of(const DecodeModel& model, int product) {
  return product == 4 * model.layers ? Kind::kHead : static_cast<Kind>(product % 4);
}

/// The same in all layers: known without asking memory.
__device__ inline MatrixShape shape_of(const DecodeModel& model, Kind kind) {
  const int query_size = model.heads * model.head_dim;
  switch (kind) {
    case Kind::kQkv:
      return {query_size + 2 * model.kv_heads * model.head_dim, model.hidden, false};
    case Kind::kAttentionOut:
      return {model.hidden, query_size, false};
    case Kind::kGateUp:
      return {2 * model.intermediate, model.hidden, true};
    case Kind::kDown:
      return {model.hidden, model.intermediate, false};
    case Kind::kHead:
      break;
  }
  return model.head;
}

// What differs between layers is read from memory well before it is used: a read takes as long as copying several
// pieces, and the L1 cache forgets everything at each grid barrier.

__device__ inline MatrixSource source_of(const DecodeModel& model, int product) {
  if (product >= 4 * model.layers) return model.head.source();
  const DecodeLayer& layer = model.layer[product / 4];
  switch (static_cast<Kind>(product % 4)) {
    case Kind::kQkv:
      return layer.qkv.source();
    case Kind::kAttentionOut:
      return layer.attention_out.source();
    case Kind::kGateUp:
      return layer.gate_up.source();
    default:
      return layer.down.source();
  }
}

__device__ inline CacheLayer cache_of(const DecodeModel& model, int product) {
  const DecodeLayer& layer = model.layer[min(product / 4, model.layers - 1)];
  return {layer.is_local != 0, layer.index_in_kind};
}

// --- what goes with them ---

/// A producer: copies its own of the pieces with the keys and values of this block's runs.
/// @param share  what BlockRuns works this block's share out of
template <KvType kKv, class Format, class... Share>
__device__ void stream_keys_and_values(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                                       Producer<Format>& producer, Share&... share) {
  using Element = typename KvFormat<kKv>::Element;
  int piece_keys = kKeysInPart;
  if constexpr (keys_in_stage<kKv, Format>(lane_dims(kMaxHeadDim)) < kKeysInPart)
    piece_keys = keys_in_stage<kKv, Format>(lane_dims(model.head_dim));
  const int piece_elements = piece_keys * model.head_dim;
  const int pieces_in_part = kKeysInPart / piece_keys;
  for (BlockRuns<kKv> runs(model, shared, layer, share...); !runs.is_done(); runs.advance(model, shared, layer)) {
    const BlockRun& run = runs.run();
    int unit = cache_unit(model, shared, layer, run.row, run.first);
    for (int block = run.first; block < run.first + run.count; ++block) {
      Element* const keys = block_in_cache<kKv>(model, layer, unit, run.kv_head, block, false);
      Element* const values = block_in_cache<kKv>(model, layer, unit, run.kv_head, block, true);
      if (block + 1 < run.first + run.count) unit = cache_unit(model, shared, layer, run.row, block + 1);
      const int first = run.range.first_part(block) * pieces_in_part;
      const int pieces = run.range.parts(block) * pieces_in_part;
      for (int i = producer.others(); i < pieces; i += Format::kProducers) {
        const int piece = first + i;
        const Element* const from = keys + piece * piece_elements;
        if constexpr (KvFormat<kKv>::kHasScales) {
          producer.copy_own_pairs({from, values + piece * piece_elements, piece_elements},
                                  {scales_of_block(model, keys) + piece * piece_keys,
                                   scales_of_block(model, values) + piece * piece_keys, 4 * piece_keys});
        } else {
          producer.copy_own_pair(from, values + piece * piece_elements, piece_elements);
        }
      }
      producer.pass(pieces);
    }
  }
}

__device__ inline float gelu(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

}  // namespace gemma
