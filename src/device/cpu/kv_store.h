#pragma once

#include <cstddef>
#include <span>

#include "device/cpu/memory.h"
#include "device/device.h"
#include "model/config.h"

namespace gemma {

/// Keys and values of one KV head at kPagePositions neighbouring positions, in the cache's type. In q8, each is
/// followed by the positions' scales, [kPagePositions] float.
struct KvBlock {
  const std::byte* keys = nullptr;    ///< [head_dim, kPagePositions]: a query meets all keys of the block at once
  const std::byte* values = nullptr;  ///< [kPagePositions, head_dim]
};

/// The cache's memory: rings of the local layers and pages of the global ones, both made of blocks of kPagePositions
/// positions for each KV head.
///
///   rings: [rings, local layers, 2, kv_heads, ring_slots / kPagePositions] blocks; keys, then values
///   pages: [pages, global layers, 2, kv_heads] blocks
class KvStore {
 public:
  /// @throws Error if the layout is not usable or its memory cannot be had.
  KvStore(const Config& config, const KvLayout& layout);

  /// Bytes that a layout takes.
  static double bytes(const Config& config, const KvLayout& layout);

  const KvLayout& layout() const { return layout_; }

  /// The block of a layer that holds `position` of a sequence.
  KvBlock block(const SequenceRows& sequence, int layer, int kv_head, int position) const;

  /// Writes neighbouring positions of one KV head, which must lie in one block, rounded to the cache's type.
  /// @param keys, values  rows of head_dim floats, `stride` floats apart.
  void write(const SequenceRows& sequence, int layer, int kv_head, int position, int count, const float* keys,
             const float* values, std::size_t stride);

  void copy_ring(int from, int to);
  void copy_page(int from, int to);
  std::size_t slot_bytes() const;
  void read_slots(int ring, int slot, int count, std::span<std::byte> out) const;
  void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes);

 private:
  struct MutableBlock {
    std::byte* keys;
    std::byte* values;
  };

  MutableBlock find(const SequenceRows& sequence, int layer, int kv_head, int position) const;
  std::byte* ring_block(int ring, int local_layer, int part, int kv_head, int slot) const;

  /// Calls visit(pointer, bytes) for the pieces of some neighbouring slots, always in the same order.
  template <typename Visit>
  void visit_slots(int ring, int first_slot, int count, Visit&& visit) const;

  KvLayout layout_;
  int kv_heads_ = 0;
  int head_dim_ = 0;
  int local_layers_ = 0;
  int global_layers_ = 0;
  std::size_t block_bytes_ = 0;            // of the keys, and of the values, of one block
  std::size_t scales_offset_ = 0;          // where the scales of such a part begin, if there are any
  std::vector<LayerKind> kinds_;           // of each layer
  std::vector<int> index_among_its_kind_;  // of each layer
  Memory rings_;
  Memory pages_;
};

}  // namespace gemma
