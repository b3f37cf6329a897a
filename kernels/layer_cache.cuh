#pragma once

// Where one layer's keys and values lie on the GPU, and which rows of a chunk are whose: what the prompt kernels share.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

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

/// One layer of the cache: rings [rings, layers_of_kind, 2, kv_heads, ring_slots, head_dim] for a local layer, pages
/// [pages, layers_of_kind, 2, kv_heads, 64, head_dim] for a global one; keys, then values.
struct LayerCache {
  __nv_bfloat16* memory;  ///< all rings, or all pages
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
/// The keys (or values) of one KV head at the 64 positions from 64 * block on: [64, head_dim].
__device__ inline __nv_bfloat16* block_in_layer(const LayerCache& cache, const PromptSequence& sequence, int kv_head,
                                                int block, bool is_value) {
  constexpr int kBlockPositions = 64;
  const std::size_t head_in_pair = static_cast<std::size_t>(is_value ? cache.kv_heads : 0) + kv_head;
  const int unit =
      cache.is_local ? sequence.ring
                     : __ldg(cache.page_table + static_cast<std::size_t>(sequence.page_row) * cache.max_pages + block);
  const int unit_slots = cache.is_local ? cache.ring_slots : kBlockPositions;
  const std::size_t slot = cache.is_local ? static_cast<std::size_t>(block) * kBlockPositions % cache.ring_slots : 0;
  const std::size_t layer = static_cast<std::size_t>(unit) * cache.layers_of_kind + cache.index_in_kind;
  return cache.memory + ((layer * 2 * cache.kv_heads + head_in_pair) * unit_slots + slot) * cache.head_dim;
}
#endif

}  // namespace gemma
