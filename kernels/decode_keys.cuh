#pragma once

// Keys and values of past positions: how they lie in the cache and in the stream, which of them a row sees, and which
// of these a thread block attends to.

#include <type_traits>

#include "decode_block.cuh"
#include "device/attention_mask.h"
#include "device/device.h"
#include "kv_codes.cuh"

namespace gemma {

inline constexpr int kBlockKeys = kPagePositions;
inline constexpr int kKeysInPart = 8;  // keys of a block whose scores one warp works out
inline constexpr int kPartsInBlock = kBlockKeys / kKeysInPart;
inline constexpr int kHeadsAtOnce = 2;  // query heads of a group that share a pass over the keys
inline constexpr int kMaxHeadDim = 256;

static_assert(kPartsInBlock == kConsumerWarps);

// --- how keys and values lie in the cache and in the stream ---

/// A block is [64, head_dim] elements and then what scales take as much room as.
template <KvType kKv>
struct KvFormat {
  static_assert(kKv == KvType::kBf16 || kKv == KvType::kQ8);
  static constexpr bool kHasScales = kKv == KvType::kQ8;
  using Element = std::conditional_t<kHasScales, std::int8_t, __nv_bfloat16>;
  static constexpr int kScaleElements = kHasScales ? static_cast<int>(sizeof(float)) : 0;

  /// Of one head's key or value.
  __host__ __device__ static constexpr int bytes(int head_dim) {
    return (head_dim + kScaleElements) * static_cast<int>(sizeof(Element));
  }
};

/// Elements of a head that a lane has: head_dim / 32, rounded up to 2, 4 or 8. Kernels are compiled for each.
__host__ __device__ constexpr int lane_dims(int head_dim) { return head_dim > 128 ? 8 : head_dim > 64 ? 4 : 2; }

/// Keys of a part that lie in one stage, together with their values: a power of two. With smaller stages a part takes
/// several neighbouring ones. A stage has keys, values, the keys' scales and the values'.
/// @param dims  lane_dims()
template <KvType kKv, class Format>
__host__ __device__ constexpr int keys_in_stage(int dims) {
  int keys = kKeysInPart;
  while (2 * keys * KvFormat<kKv>::bytes(32 * dims) > Format::kStageBytes) keys /= 2;
  return keys;
}

/// Stages of a block of keys. If all its parts are worked on at once, a stream must have as many: a wait for a stage
/// ends at once if the piece that is to lie there before has not arrived yet.
template <KvType kKv, class Format>
__host__ __device__ constexpr int stages_of_attention(int dims) {
  return kPartsInBlock * kKeysInPart / keys_in_stage<kKv, Format>(dims);
}

/// Whether kernels can work on one half of a block's parts after the other where they have fewer stages. What lay in a
/// stage before is then of the first half, or of the block before, and has been waited for ahead of a barrier.
template <KvType kKv, class Format>
__host__ __device__ constexpr bool can_halve_blocks(int architecture, int dims) {
  return is_short_of_memory(architecture) && stages_of_attention<kKv, Format>(dims) > 2 * kPartsInBlock;
}

/// Stages that a stream must have at least. Blocks are not halved where several passes over them are made: the first
/// half would have to make room before the last one.
/// @param group_heads  query heads of a KV head
template <KvType kKv, class Format>
constexpr int least_stages(int architecture, int dims, int group_heads) {
  const bool is_halved = can_halve_blocks<kKv, Format>(architecture, dims) && group_heads <= kHeadsAtOnce;
  const int stages = stages_of_attention<kKv, Format>(dims) / (is_halved ? 2 : 1);
  return stages > Format::kMinStages ? stages : Format::kMinStages;
}

// --- which keys a row sees ---

struct KeyRange {
  int first, last;  // positions, both seen

  __device__ int first_block() const { return first / kBlockKeys; }
  __device__ int blocks() const { return last / kBlockKeys - first_block() + 1; }
  /// Parts of a block, counted from its first key, that have keys in the range.
  __device__ int first_part(int block) const { return max(first - block * kBlockKeys, 0) / kKeysInPart; }
  __device__ int parts(int block) const {
    return min(last - block * kBlockKeys, kBlockKeys - 1) / kKeysInPart - first_part(block) + 1;
  }
};

/// Of a layer, what attention must know: read from memory once, not at every use.
struct CacheLayer {
  bool is_local;
  int index_in_kind;
};

__device__ inline KeyRange visible_keys(const DecodeModel& model, const CacheLayer& layer, int position) {
  const int window = layer.is_local ? model.window : kNoWindow;
  return {position < window ? 0 : position - window + 1, position};
}

/// The ring, or the page, that has a block of a row's keys.
template <class Format>
__device__ int cache_unit(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer, int row,
                          int block) {
  return layer.is_local ? shared.ring[row] : __ldg(model.page_table + row * model.max_pages + block);
}

/// The first key of a block (its first value with `is_value`).
template <KvType kKv>
__device__ typename KvFormat<kKv>::Element* block_in_cache(const DecodeModel& model, const CacheLayer& layer, int unit,
                                                           int kv_head, int block, bool is_value) {
  using Element = typename KvFormat<kKv>::Element;
  const std::size_t head_in_pair = static_cast<std::size_t>(is_value ? model.kv_heads : 0) + kv_head;
  constexpr int kScaleElements = KvFormat<kKv>::kScaleElements;
  if (layer.is_local) {
    const std::size_t ring = static_cast<std::size_t>(unit) * model.local_layers + layer.index_in_kind;
    const int slot = block * kBlockKeys % model.ring_slots;
    return static_cast<Element*>(model.rings) +
           ((ring * 2 * model.kv_heads + head_in_pair) * model.ring_slots + slot) * (model.head_dim + kScaleElements);
  }
  const std::size_t page = static_cast<std::size_t>(unit) * model.global_layers + layer.index_in_kind;
  return static_cast<Element*>(model.pages) +
         (page * 2 * model.kv_heads + head_in_pair) * kBlockKeys * (model.head_dim + kScaleElements);
}

/// The scales of a block in 8 bits: [64].
__device__ inline float* scales_of_block(const DecodeModel& model, std::int8_t* block) {
  return reinterpret_cast<float*>(block + kBlockKeys * model.head_dim);
}

/// A run of neighbouring blocks of keys of one row and KV head, all of the same group: what one thread block works on
/// without talking to others.
struct BlockRun {
  int row, kv_head;
  KeyRange range;
  int first, count;  // blocks of 64 positions

  __device__ int group() const { return (first - range.first_block()) / kBlocksInGroup; }
  __device__ int groups() const { return (range.blocks() + kBlocksInGroup - 1) / kBlocksInGroup; }
  __device__ int blocks_in_group() const { return min(kBlocksInGroup, range.blocks() - group() * kBlocksInGroup); }
};

/// Which of the blocks of keys of all rows a thread block works on.
struct AttentionShare {
  int first, last;       // [first, last): row by row, in a row by KV head
  int row;               // that the first is of
  int first_in_row;      // the row's first
  bool has_short_texts;  // among all rows: is_short_text()
};

/// Attention's work: for each row and KV head the blocks of keys that the row sees, one behind the other, of which each
/// block of the grid gets an equal share. Goes through the runs of this one.
template <KvType kKv = KvType::kBf16>
class BlockRuns {
 public:
  BlockRuns() = default;
  template <class Format>
  __device__ BlockRuns(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer, int rows,
                       Dealer& dealer) {
    int total = 0;
    for (int row = 0; row < rows; ++row)
      total += visible_keys(model, layer, shared.position[row]).blocks() * model.kv_heads;
    const Share share =
        dealer.deal_items(total, 2 * kBlockKeys * KvFormat<kKv>::bytes(model.head_dim) / Format::kPieceBytes);
    item_ = share.first;
    last_ = share.last;
    before_ = 0;
    run_.row = 0;
    find(model, shared, layer);
  }
  /// With the share worked out beforehand.
  template <class Format>
  __device__ BlockRuns(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                       const AttentionShare& share)
      : item_(share.first), last_(share.last), before_(share.first_in_row) {
    run_.row = share.row;
    find(model, shared, layer);
  }

  __device__ bool is_done() const { return item_ >= last_; }
  __device__ const BlockRun& run() const { return run_; }
  template <class Format>
  __device__ void advance(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer) {
    item_ += run_.count;
    find(model, shared, layer);
  }

 private:
  template <class Format>
  __device__ void find(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer) {
    if (is_done()) return;
    for (;; ++run_.row) {
      run_.range = visible_keys(model, layer, shared.position[run_.row]);
      const int of_row = run_.range.blocks() * model.kv_heads;
      if (item_ < before_ + of_row) break;
      before_ += of_row;
    }
    const int blocks = run_.range.blocks();
    run_.kv_head = (item_ - before_) / blocks;
    const int index = item_ - before_ - run_.kv_head * blocks;
    const int until = min(blocks, (index / kBlocksInGroup + 1) * kBlocksInGroup);  // the end of the group
    run_.first = run_.range.first_block() + index;
    run_.count = min(until - index, last_ - item_);
  }

  int item_, last_;
  int before_;  // items of earlier rows
  BlockRun run_;
};

}  // namespace gemma
