#pragma once

// Where one layer's keys and values lie on the GPU, and which rows of a chunk are whose: what the prompt kernels share.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kv_codes.cuh"

namespace gemma {

/// The rows that one sequence has in a prompt chunk. Row first_row + i is at position `position` + i; everything before
/// `position` (within the window) is in the cache.
struct PromptSequence {
  int first_row;
  int rows;
  int position;
  int ring;      ///< the sequence's ring in every local layer
  int page_row;  ///< the sequence's row of the page table
};

/// Neighbouring positions that lie together, and what attention goes over at once.
inline constexpr int kBlockPositions = 64;

/// One layer of the cache: rings [rings, layers_of_kind, 2, kv_heads, ring_slots / 64] of blocks for a local layer,
/// pages [pages, layers_of_kind, 2, kv_heads] of them for a global one; keys, then values. A block is bf16 [64,
/// head_dim] or, with 8 bits, int8 [64, head_dim] and then the positions' scales, float [64].
struct LayerCache {
  void* memory;  ///< all rings, or all pages; which of the two blocks it has is known to those who work on it
  bool is_local;
  int index_in_kind;   ///< among the local, or the global, layers
  int layers_of_kind;  ///< how many of them there are
  int kv_heads;
  int head_dim;
  int ring_slots;  ///< local: a multiple of 64, at least the window or the longest text; position p is in slot p %
                   ///< ring_slots
  const int* page_table;  ///< global: [sequences, max_pages], on the GPU; entry p / 64 is the page of position p
  int max_pages;          ///< width of the page table
};

#ifdef __CUDACC__
/// How many keys and values of one head lie before the block of 64 positions from 64 * block on.
__device__ inline std::size_t heads_before_block(const LayerCache& cache, const PromptSequence& sequence, int kv_head,
                                                 int block, bool is_value) {
  const std::size_t head_in_pair = static_cast<std::size_t>(is_value ? cache.kv_heads : 0) + kv_head;
  const int unit =
      cache.is_local ? sequence.ring
                     : __ldg(cache.page_table + static_cast<std::size_t>(sequence.page_row) * cache.max_pages + block);
  const int unit_slots = cache.is_local ? cache.ring_slots : kBlockPositions;
  const std::size_t slot = cache.is_local ? static_cast<std::size_t>(block) * kBlockPositions % cache.ring_slots : 0;
  const std::size_t layer = static_cast<std::size_t>(unit) * cache.layers_of_kind + cache.index_in_kind;
  return (layer * 2 * cache.kv_heads + head_in_pair) * unit_slots + slot;
}

/// The keys (or values) of one KV head at the 64 positions from 64 * block on: [64, head_dim].
__device__ inline __nv_bfloat16* block_in_layer(const LayerCache& cache, const PromptSequence& sequence, int kv_head,
                                                int block, bool is_value) {
  return static_cast<__nv_bfloat16*>(cache.memory) +
         heads_before_block(cache, sequence, kv_head, block, is_value) * cache.head_dim;
}

/// The same where they are kept in 8 bits.
struct QuantisedBlock {
  std::int8_t* codes;  ///< [64, head_dim]
  float* scales;       ///< [64]
};

__device__ inline QuantisedBlock quantised_block_in_layer(const LayerCache& cache, const PromptSequence& sequence,
                                                          int kv_head, int block, bool is_value) {
  auto* codes = static_cast<std::int8_t*>(cache.memory) +
                heads_before_block(cache, sequence, kv_head, block, is_value) * quantised_head_bytes(cache.head_dim);
  return {codes, reinterpret_cast<float*>(codes + kBlockPositions * cache.head_dim)};
}
#endif

}  // namespace gemma
