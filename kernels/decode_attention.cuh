#pragma once

// Attention of any number of rows over keys and values that arrive through the stream.
//
// It goes over blocks of 64 keys aligned to absolute positions, 8 keys a warp; blocks are combined in ascending order
// in groups of 16, and then the groups: by whichever thread block finishes last, or (of a single row whose numbers are
// messages) by all thread blocks, each a slice of the elements.
//
// With a cache in 8 bits, queries are multiplied by codes, and the sum by the key's scale; a weight is multiplied by
// the value's scale before it is by codes. The row's own key and value are rounded to bf16 first, as those of prompts
// are: codes and scales come out the same. (Attention of prompts rounds their products to bf16 once more, since it
// multiplies on the tensor cores.)

#include <type_traits>

#include "decode_block.cuh"
#include "decode_message.cuh"
#include "decode_product.cuh"
#include "device/attention_mask.h"
#include "device/device.h"
#include "kv_codes.cuh"

namespace gemma {

inline constexpr int kBlockKeys = kPagePositions;
inline constexpr int kKeysInPart = 8;  // keys of a block that one warp works on
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
  int first, last;   // [first, last): row by row, in a row by KV head
  int row;           // that the first is of
  int first_in_row;  // the row's first
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

// --- the work ---

__device__ inline float soft_cap(float value, float cap) { return cap > 0 ? cap * tanhf(value / cap) : value; }

/// Rotary embedding of an element of a head, rounded as kernels/rope.cu does it.
/// @param y         the element across, half a head on or back
/// @param is_first  whether x is in the first half
__device__ inline float rotated(float x, float y, float2 turn, bool is_first) {
  const float across = __fmul_rn(y, turn.y);
  return fmaf(x, turn.x, is_first ? -across : across);
}

/// Merges softmax sums over separate keys, in the order given: out = sum exp(m_i - m) o_i, likewise the sums.
struct Softmax {
  float largest, sum;
};

/// What the warps of a block share while they attend to one block of keys; in the scratch memory.
struct AttentionScratch {
  float query[kHeadsAtOnce][kMaxHeadDim];  // rotated and scaled
  float new_key[kMaxHeadDim];              // the row's own, rounded as the cache has it; in 8 bits, its codes
  float new_value[kMaxHeadDim];
  float2 sums[kConsumerWarps][kHeadsAtOnce];
  float out[kConsumerWarps][kHeadsAtOnce][kMaxHeadDim];
  float new_key_scale, new_value_scale;
};
static_assert(sizeof(AttentionScratch) <= least_scratch_bytes(860, 1));

/// Lanes with the bit `kOffset` keep the upper half of 2 * kCount numbers, the others the lower half, each added to
/// what the lane across had of it.
template <int kOffset, int kCount>
__device__ void keep_half(float (&values)[16]) {
  const bool is_upper = (lane_index() & kOffset) != 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float kept = is_upper ? values[i + kCount] : values[i];
    const float given = is_upper ? values[i] : values[i + kCount];
    values[i] = kept + __shfl_xor_sync(~0u, given, kOffset);
  }
}

/// Sums 16 numbers over the lanes of a warp. @return the sum of values[lane / 2]
__device__ inline float sum_over_lanes(float (&values)[16]) {
  keep_half<16, 8>(values);
  keep_half<8, 4>(values);
  keep_half<4, 2>(values);
  keep_half<2, 1>(values);
  return values[0] + __shfl_xor_sync(~0u, values[0], 1);
}

/// A lane's elements of a head in bf16, as wide a load as they allow. `from` is aligned to their size.
template <int kLaneDims>
__device__ void load_dims(const __nv_bfloat16* from, float (&out)[kLaneDims]) {
  std::uint32_t words[kLaneDims / 2];
  if constexpr (kLaneDims == 8) {
    *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(from);
  } else if constexpr (kLaneDims == 4) {
    *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
  } else {
    words[0] = *reinterpret_cast<const std::uint32_t*>(from);
  }
#pragma unroll
  for (int i = 0; i < kLaneDims / 2; ++i) {
    out[2 * i] = low_half(words[i]);
    out[2 * i + 1] = high_half(words[i]);
  }
}

/// The same of codes.
template <int kLaneDims>
__device__ void load_dims(const std::int8_t* from, float (&out)[kLaneDims]) {
  std::uint32_t words[(kLaneDims + 3) / 4];
  if constexpr (kLaneDims == 8) {
    *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
  } else if constexpr (kLaneDims == 4) {
    words[0] = *reinterpret_cast<const std::uint32_t*>(from);
  } else {
    words[0] = *reinterpret_cast<const std::uint16_t*>(from);
  }
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) out[i] = code_at(words[i / 4], i % 4);
}

template <int kLaneDims>
__device__ void load_dims(const float* from, float (&out)[kLaneDims]) {
  constexpr int kWidth = kLaneDims < 4 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < kLaneDims; i += kWidth) {
    if constexpr (kWidth == 4) {
      *reinterpret_cast<float4*>(out + i) = *reinterpret_cast<const float4*>(from + i);
    } else {
      *reinterpret_cast<float2*>(out + i) = *reinterpret_cast<const float2*>(from + i);
    }
  }
}

/// One warp, with a cache in 8 bits: rounds the key or value that prepare_attention() has left, and puts it into the
/// cache.
/// @param element  [head_dim], becomes codes
/// @param codes    where they belong in the cache
template <int kLaneDims>
__device__ void quantise_own(float* element, int head_dim, std::int8_t* codes, float* cached_scale, float& own_scale) {
  const int first_dim = lane_index() * kLaneDims;
  const bool has_dims = first_dim < head_dim;
  float x[kLaneDims] = {};
  if (has_dims) load_dims(element + first_dim, x);
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) largest = max(largest, size_bits(x[i]));
  const KvScale scale = kv_scale(largest);
  if (lane_index() == 0) *cached_scale = own_scale = scale.scale;
  if (!has_dims) return;
  int code[8] = {};
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    code[i] = kv_code(x[i], scale);
    element[first_dim + i] = static_cast<float>(code[i]);
  }
  const uint2 packed = {pack_codes(code[0], code[1], code[2], code[3]), pack_codes(code[4], code[5], code[6], code[7])};
  if constexpr (kLaneDims == 8) {
    *reinterpret_cast<uint2*>(codes + first_dim) = packed;
  } else if constexpr (kLaneDims == 4) {
    *reinterpret_cast<std::uint32_t*>(codes + first_dim) = packed.x;
  } else {
    *reinterpret_cast<std::uint16_t*>(codes + first_dim) = static_cast<std::uint16_t>(packed.x);
  }
}

/// Both of them, of a run that has the row's own position.
template <int kLaneDims, class Format>
__device__ void quantise_own_pair(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                                  AttentionScratch& scratch, const BlockRun& run) {
  const int block = run.range.last / kBlockKeys;
  const int slot = run.range.last % kBlockKeys;
  const int unit = cache_unit(model, shared, layer, run.row, block);
  const auto quantise = [&](float* element, bool is_value, float& own_scale) {
    std::int8_t* cached = block_in_cache<KvType::kQ8>(model, layer, unit, run.kv_head, block, is_value);
    quantise_own<kLaneDims>(element, model.head_dim, cached + slot * model.head_dim,
                            scales_of_block(model, cached) + slot, own_scale);
  };
  quantise(scratch.new_key, false, scratch.new_key_scale);
  quantise(scratch.new_value, true, scratch.new_value_scale);
  __syncwarp();
}

/// One warp: attention of up to two heads over the 8 keys of a part, not normalised.
/// @param piece  the first of those that the part lies in
template <KvType kKv, int kLaneDims, class Format>
__device__ void attend_part(const DecodeModel& model, const Shared<Format>& shared, AttentionScratch& scratch,
                            int piece, const KeyRange& range, int first_key, int heads, int part) {
  static_assert(kHeadsAtOnce * kKeysInPart == 16);
  using Element = typename KvFormat<kKv>::Element;
  constexpr int kKeysInStage = keys_in_stage<kKv, Format>(kLaneDims);
  const int head_dim = model.head_dim;
  const int lane = thread_index() % 32;
  const int first_dim = lane * kLaneDims;
  const bool has_dims = first_dim < head_dim;
  const int newest = range.last - first_key;  // index of the row's own key, if it is in this part

  float query[kHeadsAtOnce][kLaneDims] = {};
  if (has_dims) {
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) load_dims(scratch.query[h] + first_dim, query[h]);
  }
  const Element* keys[kKeysInPart / kKeysInStage];  // the lane's elements of them in each stage
  const Element* values[kKeysInPart / kKeysInStage];
#pragma unroll
  for (int i = 0; i < kKeysInPart / kKeysInStage; ++i) {
    shared.stream.wait_until_full(piece + i);
    keys[i] = reinterpret_cast<const Element*>(shared.stream.stage(piece + i)) + first_dim;
    values[i] = keys[i] + kKeysInStage * head_dim;
  }

  float scores[16];
#pragma unroll
  for (int k = 0; k < kKeysInPart; ++k) {
    float key[kLaneDims] = {};
    if (has_dims) load_dims(keys[k / kKeysInStage] + k % kKeysInStage * head_dim, key);
    if (has_dims && k == newest) load_dims(scratch.new_key + first_dim, key);
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) sum = fmaf(query[h][i], key[i], sum);
      scores[h * kKeysInPart + k] = sum;
    }
  }
  // From here on a lane has the score of head lane / 16 and key lane / 2 % 8; at least one key of a part is seen.
  const int own_key = first_key + lane / 2 % kKeysInPart;
  const bool is_seen = own_key >= range.first && own_key <= range.last;
  float sum = sum_over_lanes(scores);
  float value_scale = 1;
  if constexpr (KvFormat<kKv>::kHasScales) {
    const int key = lane / 2 % kKeysInPart;
    const std::byte* stage = shared.stream.bytes(piece + key / kKeysInStage);
    const auto* scales = reinterpret_cast<const float*>(stage + 2 * kKeysInStage * head_dim) + key % kKeysInStage;
    sum *= key == newest ? scratch.new_key_scale : scales[0];
    value_scale = key == newest ? scratch.new_value_scale : scales[kKeysInStage];
  }
  const float score = is_seen ? soft_cap(sum, model.attention_softcap) : kMaskedScore;
  float largest = score;
#pragma unroll
  for (int offset = 2; offset < 16; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  const float weight = is_seen ? expf(score - largest) : 0.0f;
  float weights = weight;
#pragma unroll
  for (int offset = 2; offset < 16; offset *= 2) weights += __shfl_xor_sync(~0u, weights, offset);
  // A slot that the row does not see may hold anything, not-a-number included: in its value and in its scales.
  const float value_weight = KvFormat<kKv>::kHasScales ? (is_seen ? weight * value_scale : 0.0f) : weight;

  float out[kHeadsAtOnce][kLaneDims] = {};
#pragma unroll
  for (int k = 0; k < kKeysInPart; ++k) {
    const bool is_key_seen = first_key + k >= range.first && first_key + k <= range.last;
    float head_weight[kHeadsAtOnce];
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) head_weight[h] = __shfl_sync(~0u, value_weight, 16 * h + 2 * k);
    float value[kLaneDims] = {};
    if (has_dims && is_key_seen) load_dims(values[k / kKeysInStage] + k % kKeysInStage * head_dim, value);
    if (has_dims && k == newest) load_dims(scratch.new_value + first_dim, value);
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) out[h][i] = fmaf(head_weight[h], value[i], out[h][i]);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    if (h >= heads) continue;
    if (has_dims) {
#pragma unroll
      for (int i = 0; i < kLaneDims; i += 2) {
        *reinterpret_cast<float2*>(scratch.out[part][h] + first_dim + i) = make_float2(out[h][i], out[h][i + 1]);
      }
    }
    if (lane == 16 * h) scratch.sums[part][h] = {largest, weights};
  }
}

/// All consumers: the queries of some heads of a run, rotated and scaled; and if the row's own position is in the run,
/// its key and value, which go into the cache (in 8 bits, quantise_own_pair() sees to that), too. What the product has
/// left is asked for all at once.
template <KvType kKv, class Format, class QkvRow>
__device__ void prepare_attention(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                                  AttentionScratch& scratch, const BlockRun& run, int first_head, int heads,
                                  const QkvRow& qkv) {
  const int head_dim = model.head_dim;
  const int half = head_dim / 2;
  const int position = run.range.last;
  const int own_block = position / kBlockKeys;
  const bool has_own = own_block < run.first + run.count;
  const int unit = has_own ? cache_unit(model, shared, layer, run.row, own_block) : 0;
  const int queries = first_head * head_dim;
  const int key = (model.heads + run.kv_head) * head_dim;
  const int value = key + model.kv_heads * head_dim;
  const float2* rope = model.rope + static_cast<std::size_t>(position) * half;
  for (int dim = thread_index(); dim < head_dim; dim += kConsumers) {
    const bool is_first = dim < half;
    const int across = is_first ? dim + half : dim - half;
    // Elements and what they are rotated with: of each query, then of the key; and the value's.
    constexpr int kKey = 2 * kHeadsAtOnce, kValue = kKey + 2;
    int at[kValue + 1];
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      at[2 * h] = h < heads ? queries + h * head_dim + dim : -1;
      at[2 * h + 1] = h < heads ? queries + h * head_dim + across : -1;
    }
    at[kKey] = has_own ? key + dim : -1;
    at[kKey + 1] = has_own ? key + across : -1;
    at[kValue] = has_own ? value + dim : -1;
    float x[kValue + 1];
    qkv.read(at, x);
    const float2 turn = __ldg(rope + (is_first ? dim : across));
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h)
      scratch.query[h][dim] = rotated(x[2 * h], x[2 * h + 1], turn, is_first) * model.query_scale;
    if (!has_own) continue;
    const __nv_bfloat16 cached_key = __float2bfloat16_rn(rotated(x[kKey], x[kKey + 1], turn, is_first));
    const __nv_bfloat16 cached_value = __float2bfloat16_rn(x[kValue]);
    scratch.new_key[dim] = __bfloat162float(cached_key);
    scratch.new_value[dim] = __bfloat162float(cached_value);
    if constexpr (!KvFormat<kKv>::kHasScales) {
      const std::size_t offset = static_cast<std::size_t>(position % kBlockKeys) * head_dim + dim;
      block_in_cache<kKv>(model, layer, unit, run.kv_head, own_block, false)[offset] = cached_key;
      block_in_cache<kKv>(model, layer, unit, run.kv_head, own_block, true)[offset] = cached_value;
    }
  }
}

/// Takes up to kAtOnce partial results over neighbouring keys into those of the keys before, in order.
template <int kAtOnce, class PartialSums, class PartialOut>
__device__ void merge(int count, Softmax& softmax, float2& values, const PartialSums& partial_sums,
                      const PartialOut& partial_out) {
  float2 sums[kAtOnce] = {}, outs[kAtOnce] = {};
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j >= count) continue;
    sums[j] = partial_sums(j);
    outs[j] = partial_out(j);
  }
  float largest = softmax.largest;
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j < count) largest = fmaxf(largest, sums[j].x);
  }
  const float before = expf(softmax.largest - largest);
  softmax = {largest, softmax.sum * before};
  values = {values.x * before, values.y * before};
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j >= count) continue;
    const float weight = expf(sums[j].x - largest);
    softmax.sum = fmaf(weight, sums[j].y, softmax.sum);
    values.x = fmaf(weight, outs[j].x, values.x);
    values.y = fmaf(weight, outs[j].y, values.y);
  }
}

/// Combines `count` partial results over neighbouring keys, in order, kAtOnce of them at a time, as merge() does. A
/// warp works on 32 pairs of elements of one head at a time; its lanes share out what is the same for all of them, the
/// weights of the partial results. Calls done(head, dim, values, softmax) for each pair.
template <int kAtOnce, class PartialOut, class PartialSums, class Done>
__device__ void combine(int count, int heads, int head_dim, const PartialOut& partial_out,
                        const PartialSums& partial_sums, const Done& done) {
  static_assert(kAtOnce <= 32);
  const int lane = lane_index();
  const int chunks = (head_dim + 63) / 64;  // of 32 pairs
  for (int unit = warp_index(); unit < heads * chunks; unit += kConsumerWarps) {
    const int head = unit / chunks;
    const int dim = (unit - head * chunks) * 64 + 2 * lane;
    const bool has_pair = dim < head_dim;
    Softmax softmax{kMaskedScore, 0};
    float2 values = {0, 0};
    for (int first = 0; first < count; first += kAtOnce) {
      const int parts = min(kAtOnce, count - first);
      float2 sums = {kMaskedScore, 0};  // of part `lane`
      if (lane < parts) sums = partial_sums(head, first + lane);
      float2 outs[kAtOnce] = {};
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (j < parts && has_pair) outs[j] = partial_out(head, first + j, dim);
      }
      float largest = fmaxf(softmax.largest, sums.x);
#pragma unroll
      for (int offset = 1; offset < kAtOnce; offset *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      largest = __shfl_sync(~0u, largest, 0);
      const float weight = expf(sums.x - largest);
      const float before = expf(softmax.largest - largest);
      softmax = {largest, softmax.sum * before};
      values = {values.x * before, values.y * before};
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float part_weight = __shfl_sync(~0u, weight, j);
        const float part_sum = __shfl_sync(~0u, sums.y, j);
        if (j >= parts) continue;
        softmax.sum = fmaf(part_weight, part_sum, softmax.sum);
        values.x = fmaf(part_weight, outs[j].x, values.x);
        values.y = fmaf(part_weight, outs[j].y, values.y);
      }
    }
    if (has_pair) done(head, dim, values, softmax);
  }
}

/// Reports that `done` parts of some work of `all` are finished. @return whether they were the last: what the other
/// thread blocks wrote before they reported can then be read.
template <class Format>
__device__ bool report_done(const Shared<Format>& shared, unsigned* arrivals, int done, int all) {
  consumer_barrier();
  if (threadIdx.x == 0) {
    *shared.is_last =
        fetch_add_acquire_release(arrivals, static_cast<unsigned>(done)) + done == static_cast<unsigned>(all);
    if (*shared.is_last) *arrivals = 0;  // for the next layer
  }
  consumer_barrier();
  return *shared.is_last != 0;
}

/// After a run's partial results are written: combines what is complete with it, its group and then all groups.
template <class Format, class Attended>
__device__ void combine_blocks(const DecodeModel& model, const Shared<Format>& shared, const Attended& attended,
                               const BlockRun& run) {
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  const int first_head = run.row * model.heads + run.kv_head * group_heads;
  const int groups_wide = (model.max_blocks + kBlocksInGroup - 1) / kBlocksInGroup;
  const int group = run.group();
  const int groups = run.groups();
  unsigned* arrivals =
      model.block_arrivals + static_cast<std::size_t>(run.row * model.kv_heads + run.kv_head) * (groups_wide + 1);

  const auto finish = [&](int head, int dim, float2 values, const Softmax& softmax) {
    const int element = (run.kv_head * group_heads + head) * head_dim + dim;
    __stcg(reinterpret_cast<std::uint32_t*>(attended.at(run.row, element)),
           pack_bf16(values.x / softmax.sum, values.y / softmax.sum));
  };
  /// Combines partial results of which each head has `wide`, from `first` of the first head on.
  const auto combine_partials = [&](const float* outs, const float2* sums, int wide, int first, int count,
                                    const auto& done) {
    const std::size_t begin = static_cast<std::size_t>(first_head) * wide + first;
    combine<kBlocksInGroup>(
        count, group_heads, head_dim,
        [&](int head, int part, int dim) {
          return __ldcg(reinterpret_cast<const float2*>(outs + (begin + head * wide + part) * head_dim + dim));
        },
        [&](int head, int part) { return __ldcg(sums + begin + head * wide + part); }, done);
  };
  if (!report_done(shared, arrivals + group, run.count, run.blocks_in_group())) return;
  const int first = group * kBlocksInGroup;
  if (groups == 1) {
    combine_partials(model.partials, model.partial_sums, model.max_blocks, first, run.blocks_in_group(), finish);
    return;
  }
  // One copy of the code for both: the instruction cache holds little more than a layer's.
#pragma unroll 1
  for (bool are_groups = false;; are_groups = true) {
    combine_partials(are_groups ? model.group_partials : model.partials,
                     are_groups ? model.group_sums : model.partial_sums, are_groups ? groups_wide : model.max_blocks,
                     are_groups ? 0 : first, are_groups ? groups : run.blocks_in_group(),
                     [&](int head, int dim, float2 values, const Softmax& softmax) {
                       if (are_groups) return finish(head, dim, values, softmax);
                       const std::size_t at = static_cast<std::size_t>(first_head + head) * groups_wide + group;
                       __stcg(reinterpret_cast<float2*>(model.group_partials + at * head_dim + dim), values);
                       if (dim == 0) __stcg(model.group_sums + at, make_float2(softmax.largest, softmax.sum));
                     });
    if (are_groups || !report_done(shared, arrivals + groups_wide, 1, groups)) return;
  }
}

/// Where attention leaves its results for others to read: each block's as it is, until all of them are there and
/// combined by whichever thread block finishes last.
/// @tparam Attended  the next product's input: attended.at(row, column)
template <class Attended>
struct CombinedResults {
  Attended attended;

  /// @param head  of all heads
  __device__ void put(const DecodeModel& model, const BlockRun& run, int head, int block, int dim, float2 values,
                      const Softmax& softmax) const {
    const std::size_t at = static_cast<std::size_t>(run.row * model.heads + head) * model.max_blocks + block;
    __stcg(reinterpret_cast<float2*>(model.partials + at * model.head_dim + dim), values);
    if (dim == 0) __stcg(model.partial_sums + at, make_float2(softmax.largest, softmax.sum));
  }
  template <class Format>
  __device__ void end_run(const DecodeModel& model, const Shared<Format>& shared, const BlockRun& run) const {
    combine_blocks(model, shared, attended, run);
  }
};

/// The same of a single row, as messages, which combine_slices() reads.
struct SentResults {
  unsigned tag;

  __device__ void put(const DecodeModel& model, const BlockRun& /*run*/, int head, int block, int dim, float2 values,
                      const Softmax& softmax) const {
    const std::size_t at = static_cast<std::size_t>(head) * model.max_blocks + block;
    send(model.messages.partials + at * model.head_dim + dim, values, tag);
    if (dim == 0) send(model.messages.partial_sums + 2 * at, {softmax.largest, softmax.sum}, tag);
  }
  template <class Format>
  __device__ void end_run(const DecodeModel& /*model*/, const Shared<Format>& /*shared*/,
                          const BlockRun& /*run*/) const {}
};

/// Of combine_slices(), in the scratch memory: what groups of blocks have given.
struct SliceScratch {
  static constexpr int kSlices = 2;  // at once
  static constexpr int kPairs = 8;   // of elements, in a slice

  float2 values[kSlices][kBlocksInGroup][kPairs];
  float2 sums[kSlices][kBlocksInGroup];
};
static_assert(sizeof(SliceScratch) <= least_scratch_bytes(860, 1));

/// All consumers of all blocks, after attend(): waits for a single row's attention over all blocks of keys, and
/// combines it, in the order of combine_blocks(). Each block sees to slices of 16 elements of a head; 8 threads to the
/// slice of one group.
template <class Format>
__device__ void combine_slices(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                               unsigned tag) {
  constexpr int kPairs = SliceScratch::kPairs;
  static_assert(kConsumers == SliceScratch::kSlices * kBlocksInGroup * kPairs);
  SliceScratch& scratch = *reinterpret_cast<SliceScratch*>(shared.scratch);
  const int thread = thread_index();
  const int pair = thread % kPairs;
  const int own_group = thread / kPairs % kBlocksInGroup;
  const int own_slice = thread / kPairs / kBlocksInGroup;
  const int first_lane = lane_index() / kPairs * kPairs;
  const int slices_in_head = model.head_dim / (2 * kPairs);
  const int slices = model.heads * slices_in_head;
  const int blocks = visible_keys(model, layer, shared.position[0]).blocks();
  const int groups = (blocks + kBlocksInGroup - 1) / kBlocksInGroup;
  const int grid = static_cast<int>(gridDim.x);

  for (int first_slice = static_cast<int>(blockIdx.x); first_slice < slices;
       first_slice += SliceScratch::kSlices * grid) {
    const int slice = first_slice + own_slice * grid;
    const int head = slice / slices_in_head;
    const int dim = (slice % slices_in_head * kPairs + pair) * 2;
    Softmax softmax{kMaskedScore, 0};  // of all groups
    float2 values = {0, 0};
    for (int first_group = 0; first_group < groups; first_group += kBlocksInGroup) {
      const int group = first_group + own_group;
      const int count = slice < slices ? min(kBlocksInGroup, blocks - group * kBlocksInGroup) : 0;  // or less than 1
      const std::size_t at = static_cast<std::size_t>(head) * model.max_blocks + group * kBlocksInGroup;
      const unsigned long long* const sums_from = model.messages.partial_sums + 2 * at;
      const unsigned long long* const values_from = model.messages.partials + at * model.head_dim + dim;
      ulonglong2 found_sums[2] = {}, found[kBlocksInGroup] = {};
      ask_until_come([&] {
        bool is_complete = true;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int part = pair + kPairs * i;
          load_relaxed_pair_if(part < count, sums_from + 2 * part, found_sums[i]);
        }
#pragma unroll
        for (int i = 0; i < kBlocksInGroup; ++i)
          load_relaxed_pair_if(i < count, values_from + i * model.head_dim, found[i]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          is_complete = is_complete && (pair + kPairs * i >= count || have_come(found_sums[i], tag));
#pragma unroll
        for (int i = 0; i < kBlocksInGroup; ++i) is_complete = is_complete && (i >= count || have_come(found[i], tag));
        return is_complete;
      });
      __syncwarp();

      // A thread knows the sums of two blocks; it needs all of them for its own pair of elements.
      Softmax part_softmax[2];
      float largest = kMaskedScore;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        part_softmax[i] = {kMaskedScore, 0};
        if (pair + kPairs * i < count) part_softmax[i] = {value_of(found_sums[i].x), value_of(found_sums[i].y)};
        largest = fmaxf(largest, part_softmax[i].largest);
      }
#pragma unroll
      for (int offset = 1; offset < kPairs; offset *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      float weights[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) weights[i] = expf(part_softmax[i].largest - largest);
      float sum = 0;
      float2 group_values = {0, 0};
#pragma unroll
      for (int i = 0; i < kBlocksInGroup; ++i) {
        const float weight = __shfl_sync(~0u, weights[i / kPairs], first_lane + i % kPairs);
        const float part_sum = __shfl_sync(~0u, part_softmax[i / kPairs].sum, first_lane + i % kPairs);
        if (i >= count) continue;
        sum = fmaf(weight, part_sum, sum);
        group_values.x = fmaf(weight, value_of(found[i].x), group_values.x);
        group_values.y = fmaf(weight, value_of(found[i].y), group_values.y);
      }
      if (groups == 1) {
        softmax = {largest, sum};
        values = group_values;
        continue;
      }
      scratch.values[own_slice][own_group][pair] = group_values;
      if (pair == 0) scratch.sums[own_slice][own_group] = {largest, sum};
      consumer_barrier();
      if (own_group == 0) {
        merge<kBlocksInGroup>(
            min(kBlocksInGroup, groups - first_group), softmax, values,
            [&](int i) { return scratch.sums[own_slice][i]; },
            [&](int i) { return scratch.values[own_slice][i][pair]; });
      }
      consumer_barrier();
    }
    if (own_group == 0 && slice < slices) {
      const unsigned first = short_message(values.x / softmax.sum, tag);
      const unsigned second = short_message(values.y / softmax.sum, tag);
      store_relaxed(
          reinterpret_cast<unsigned long long*>(model.messages.attended + operand_order(head * model.head_dim + dim)),
          static_cast<unsigned long long>(second) << 32 | first);
    }
  }
}

/// @param qkv      what the last product gave: qkv.row(i).read() as ProductRow's
/// @param results  CombinedResults, or alike
template <KvType kKv, int kLaneDims, class Format, class Qkv, class Results>
__device__ void attend(const DecodeModel& model, const CacheLayer& layer, const Shared<Format>& shared,
                       BlockRuns<kKv>& runs, const Qkv& qkv, const Results& results, int& next_piece) {
  constexpr int kPiecesInPart = kKeysInPart / keys_in_stage<kKv, Format>(kLaneDims);
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  AttentionScratch& scratch = *reinterpret_cast<AttentionScratch*>(shared.scratch);
  const bool is_halved = can_halve_blocks<kKv, Format>(kArchitecture, kLaneDims) &&
                         shared.stream.stages < stages_of_attention<kKv, Format>(kLaneDims);

  for (; !runs.is_done(); runs.advance(model, shared, layer)) {
    const BlockRun& run = runs.run();
    for (int block = run.first; block < run.first + run.count; ++block) {
      const int parts = run.range.parts(block);
      const int part = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps;
      const int first_key = block * kBlockKeys + (run.range.first_part(block) + part) * kKeysInPart;
      for (int first = 0; first < group_heads; first += kHeadsAtOnce) {
        const int heads = min(kHeadsAtOnce, group_heads - first);
        const int first_head = run.kv_head * group_heads + first;
        // With no more heads than are worked on at once, the queries serve the whole run.
        if (block == run.first || group_heads > kHeadsAtOnce)
          prepare_attention<kKv>(model, shared, layer, scratch, run, first_head, heads, qkv.row(run.row));
        consumer_barrier();
        if (is_halved && part >= kPartsInBlock / 2) consumer_barrier();  // the first half is done
        if (part < parts) {
          const int piece = next_piece + part * kPiecesInPart;
          if constexpr (KvFormat<kKv>::kHasScales) {
            if (run.range.last - first_key >= 0 && run.range.last - first_key < kKeysInPart)
              quantise_own_pair<kLaneDims>(model, shared, layer, scratch, run);
          }
          attend_part<kKv, kLaneDims>(model, shared, scratch, piece, run.range, first_key, heads, part);
          if (first + kHeadsAtOnce >= group_heads) {
#pragma unroll
            for (int i = 0; i < kPiecesInPart; ++i) shared.stream.release(piece + i);
          }
        }
        if (is_halved && part < kPartsInBlock / 2) consumer_barrier();
        consumer_barrier();
        combine<kPartsInBlock>(
            parts, heads, head_dim,
            [&](int head, int p, int dim) { return *reinterpret_cast<const float2*>(scratch.out[p][head] + dim); },
            [&](int head, int p) { return scratch.sums[p][head]; },
            [&](int head, int dim, float2 values, const Softmax& softmax) {
              results.put(model, run, first_head + head, block - run.range.first_block(), dim, values, softmax);
            });
      }
      next_piece += parts * kPiecesInPart;
    }
    results.end_run(model, shared, run);
    consumer_barrier();  // before the next run's queries take the place of this one's
  }
}

}  // namespace gemma
