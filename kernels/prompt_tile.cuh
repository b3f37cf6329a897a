#pragma once

// What the kernels of prompt attention share: which keys rows see, and where keys and values lie. Keys are taken in
// tiles of 64, aligned to absolute positions, in ascending order.

#include "device/attention_mask.h"
#include "prompt_attention.cuh"

namespace gemma {

inline constexpr int kAttentionTile = 64;  // rows of a block, and keys of a tile

/// The rows that a block, or a warp, works on.
struct AttentionRows {
  int first_query, last_query;  // their positions

  __device__ int first_key(int window) const { return first_visible(first_query, window); }
  /// Of the tile whose first key is at `first`.
  __device__ bool sees_any(int first, int window) const {
    return first <= last_query && first + kAttentionTile > first_key(window);
  }
  __device__ bool see_all(int first, int window) const {
    return first + kAttentionTile - 1 <= first_query && first >= first_visible(last_query, window);
  }
};

/// Where the keys (or values) of a tile are: before the chunk in the cache, then in the chunk.
class TileSource {
 public:
  __device__ TileSource(const PromptAttention& attention, const PromptSequence& sequence, int kv_head, int tile,
                        bool is_value)
      : chunk_key_(sequence.position - tile * kAttentionTile),
        head_dim_(attention.cache.head_dim),
        chunk_pitch_(attention.cache.kv_heads * attention.cache.head_dim) {
    if (chunk_key_ > 0) cached_ = block_in_layer(attention.cache, sequence, kv_head, tile, is_value);
    chunk_ = (is_value ? attention.v : attention.k) + static_cast<std::size_t>(sequence.first_row) * chunk_pitch_ +
             kv_head * head_dim_;
  }

  /// The key at position tile * kAttentionTile + key.
  __device__ const __nv_bfloat16* operator[](int key) const {
    return key < chunk_key_ ? cached_ + key * head_dim_
                            : chunk_ + static_cast<std::ptrdiff_t>(key - chunk_key_) * chunk_pitch_;
  }

 private:
  int chunk_key_;  // the first key of the tile that is in the chunk
  int head_dim_;
  int chunk_pitch_;
  const __nv_bfloat16* cached_ = nullptr;
  const __nv_bfloat16* chunk_;
};

}  // namespace gemma
