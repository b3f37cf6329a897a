#pragma once

// Attention of any number of rows over keys and values that arrive through the stream.
//
// It goes over blocks of 64 keys aligned to absolute positions (and decode_partials.cuh puts the blocks together). Each
// warp multiplies two heads' queries by 8 keys, a part, on the tensor cores: the bf16 nearest to them, and what
// rounding to it left over. Then each adds up an eighth of the values' elements, of all parts, four lanes those of one
// part.
//
// With a cache in 8 bits, queries are multiplied by codes, and the sum by the key's scale; a weight is multiplied by
// the value's scale before it is by codes. The row's own key and value are rounded to bf16 first, as those of prompts
// are: codes and scales come out the same. (Attention of prompts rounds their products to bf16 once more, since it
// multiplies on the tensor cores.)

#include <type_traits>

#include "decode_block.cuh"
#include "decode_keys.cuh"
#include "decode_partials.cuh"
#include "device/attention_mask.h"
#include "kv_codes.cuh"

namespace gemma {

__device__ inline float soft_cap(float value, float cap) { return cap > 0 ? cap * tanhf(value / cap) : value; }

/// Rotary embedding of an element of a head, rounded as kernels/rope.cu does it.
/// @param y         the element across, half a head on or back
/// @param is_first  whether x is in the first half
__device__ inline float rotated(float x, float y, float2 turn, bool is_first) {
  const float across = __fmul_rn(y, turn.y);
  return fmaf(x, turn.x, is_first ? -across : across);
}

/// What the warps of a block share while they attend to one block of keys; in the scratch memory.
struct alignas(16) AttentionScratch {
  static constexpr int kPitch = kMaxHeadDim + 8;  // so that neighbouring heads fall into different banks

  __nv_bfloat16 query[2][kHeadsAtOnce][kPitch];  // rotated and scaled: in bf16, and what rounding left over
  __nv_bfloat16 own_key[kMaxHeadDim];            // the row's own, rounded as the cache has them
  __nv_bfloat16 own_value[kMaxHeadDim];
  float weights[kBlockKeys][kHeadsAtOnce];  // of values, relative to those of the part's largest score
  Softmax parts[kHeadsAtOnce][kPartsInBlock];
};
static_assert(sizeof(AttentionScratch) <= least_scratch_bytes(860, 1));

// --- before: queries, and the row's own key and value ---

/// All consumers: the queries of some heads of a run, rotated and scaled; and if the row's own position is in the run,
/// its key and value, which go into the cache (in 8 bits, complete_part() sees to that), too. What the product has left
/// is asked for all at once.
/// @tparam kLaneDims  lane_dims(): queries are filled up with zeros to a multiple of 128
template <KvType kKv, int kLaneDims, class Format, class QkvRow>
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
  constexpr int kWholeDims = kLaneDims == 8 ? 256 : 128;
  static_assert(kWholeDims <= kConsumers);
  const int dim = thread_index();
  if (dim >= kWholeDims) return;
  const bool has_dim = dim < head_dim;
  const bool is_first = dim < half;
  const int across = is_first ? dim + half : dim - half;
  // Elements and what they are rotated with: of each query, then of the key; and the value's.
  constexpr int kKey = 2 * kHeadsAtOnce, kValue = kKey + 2;
  int at[kValue + 1];
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    at[2 * h] = has_dim && h < heads ? queries + h * head_dim + dim : -1;
    at[2 * h + 1] = has_dim && h < heads ? queries + h * head_dim + across : -1;
  }
  at[kKey] = has_dim && has_own ? key + dim : -1;
  at[kKey + 1] = has_dim && has_own ? key + across : -1;
  at[kValue] = has_dim && has_own ? value + dim : -1;
  float x[kValue + 1];
  qkv.read(at, x);
  const float2 turn = has_dim ? __ldg(rope + (is_first ? dim : across)) : float2{0, 0};
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    const float query = rotated(x[2 * h], x[2 * h + 1], turn, is_first) * model.query_scale;
    const __nv_bfloat16 nearest = __float2bfloat16_rn(query);
    scratch.query[0][h][dim] = nearest;
    scratch.query[1][h][dim] = __float2bfloat16_rn(query - __bfloat162float(nearest));
  }
  if (!has_own || !has_dim) return;
  const __nv_bfloat16 own_key = __float2bfloat16_rn(rotated(x[kKey], x[kKey + 1], turn, is_first));
  const __nv_bfloat16 own_value = __float2bfloat16_rn(x[kValue]);
  scratch.own_key[dim] = own_key;
  scratch.own_value[dim] = own_value;
  if constexpr (!KvFormat<kKv>::kHasScales) {
    const std::size_t offset = static_cast<std::size_t>(position % kBlockKeys) * head_dim + dim;
    block_in_cache<kKv>(model, layer, unit, run.kv_head, own_block, false)[offset] = own_key;
    block_in_cache<kKv>(model, layer, unit, run.kv_head, own_block, true)[offset] = own_value;
  }
}

/// A word of neighbouring elements in bf16, or as many bytes of codes.
template <int kElements, class Element>
using ElementWords = std::conditional_t<
    kElements * sizeof(Element) == 16, uint4,
    std::conditional_t<kElements * sizeof(Element) == 8, uint2,
                       std::conditional_t<kElements * sizeof(Element) == 4, std::uint32_t, std::uint16_t>>>;

/// One warp, with a cache in 8 bits: rounds the key or value that prepare_attention() has left.
/// @param element  [head_dim]
/// @param codes    where they belong: in the cache, and in the stage
/// @param scales   likewise
template <int kLaneDims>
__device__ void quantise_own(const __nv_bfloat16* element, int head_dim, std::int8_t* const (&codes)[2],
                             float* const (&scales)[2]) {
  const int first_dim = thread_index() % 32 * kLaneDims;
  const bool has_dims = first_dim < head_dim;
  float x[kLaneDims] = {};
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    if (has_dims) x[i] = __bfloat162float(element[first_dim + i]);
    largest = max(largest, size_bits(x[i]));
  }
  const KvScale scale = kv_scale(largest);
  if (lane_index() == 0) *scales[0] = *scales[1] = scale.scale;
  if (!has_dims) return;
  int code[8] = {};
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) code[i] = kv_code(x[i], scale);
  const uint2 packed = {pack_codes(code[0], code[1], code[2], code[3]), pack_codes(code[4], code[5], code[6], code[7])};
  using Words = ElementWords<kLaneDims, std::int8_t>;
  for (std::int8_t* const to : codes)
    *reinterpret_cast<Words*>(to + first_dim) = reinterpret_cast<const Words&>(packed);
}

// --- a part: 8 keys and their values, in one stage or in several neighbouring ones ---

/// One of its stages.
template <KvType kKv, int kKeysInStage>
struct PartStage {
  using Element = typename KvFormat<kKv>::Element;

  Element* memory;
  int head_dim;

  /// @param k  which key of the stage, as in what follows
  __device__ Element* key(int k) const { return memory + k * head_dim; }
  __device__ Element* value(int k) const { return memory + (kKeysInStage + k) * head_dim; }
  __device__ float* key_scale(int k) const {
    return reinterpret_cast<float*>(memory + 2 * kKeysInStage * head_dim) + k;
  }
  __device__ float* value_scale(int k) const { return key_scale(kKeysInStage + k); }
};

template <KvType kKv, int kLaneDims, class Format>
struct PartInStages {
  static constexpr int kKeysInStage = keys_in_stage<kKv, Format>(kLaneDims);
  static constexpr int kStages = kKeysInPart / kKeysInStage;
  static_assert(kKeysInStage >= 2);
  using Stage = PartStage<kKv, kKeysInStage>;
  using Element = typename Stage::Element;

  int piece;  // the first of kStages
  Stage stages[kStages];

  __device__ PartInStages(const Stream<Format>& stream, int piece, int head_dim) : piece(piece) {
    RingPlace place = stream.place(piece);
#pragma unroll
    for (Stage& stage : stages) {
      stage = {reinterpret_cast<Element*>(stream.memory(place.stage)), head_dim};
      place.advance(stream.stages);
    }
  }
  /// The stage of a key, and which one it is there: for a key that is known beforehand.
  __device__ const Stage& stage_of(int k) const { return stages[k / kKeysInStage]; }
  __device__ static constexpr int in_stage(int k) { return k % kKeysInStage; }
};

/// One warp: gives a part what the cache has not had yet, the row's own key and value; and zeros for values that the
/// row does not see, which may be anything, not-a-number included.
/// @param piece  the first of those that the part lies in
template <KvType kKv, int kLaneDims, class Format>
__device__ void complete_part(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                              const AttentionScratch& scratch, const BlockRun& run, int piece, int first_key) {
  using Part = PartInStages<kKv, kLaneDims, Format>;
  using Element = typename Part::Element;
  using Words = ElementWords<kLaneDims, Element>;
  const int head_dim = model.head_dim;
  const int first_dim = thread_index() % 32 * kLaneDims;
  const bool has_dims = first_dim < head_dim;
#pragma unroll 1
  for (int i = 0; i < kKeysInPart; ++i) {
    const int position = first_key + i;
    if (position >= run.range.first && position < run.range.last) continue;
    const int k = Part::in_stage(i);
    const typename Part::Stage stage{reinterpret_cast<Element*>(shared.stream.stage(piece + i / Part::kKeysInStage)),
                                     head_dim};
    if (position != run.range.last) {
      if (has_dims) *reinterpret_cast<Words*>(stage.value(k) + first_dim) = Words{};
    } else if constexpr (KvFormat<kKv>::kHasScales) {
      const int block = position / kBlockKeys;
      const int unit = cache_unit(model, shared, layer, run.row, block);
      const auto quantise = [&](const __nv_bfloat16* own, bool is_value, Element* in_stage, float* scale) {
        Element* const cached = block_in_cache<kKv>(model, layer, unit, run.kv_head, block, is_value);
        const int slot = position % kBlockKeys;
        quantise_own<kLaneDims>(own, head_dim, {cached + slot * head_dim, in_stage},
                                {scales_of_block(model, cached) + slot, scale});
      };
      quantise(scratch.own_key, false, stage.key(k), stage.key_scale(k));
      quantise(scratch.own_value, true, stage.value(k), stage.value_scale(k));
    } else if (has_dims) {
      *reinterpret_cast<Words*>(stage.key(k) + first_dim) =
          *reinterpret_cast<const Words*>(scratch.own_key + first_dim);
      *reinterpret_cast<Words*>(stage.value(k) + first_dim) =
          *reinterpret_cast<const Words*>(scratch.own_value + first_dim);
    }
  }
  fence_for_async_copies();
  __syncwarp();
}

/// Eight neighbouring elements in bf16.
__device__ inline uint4 load_eight(const __nv_bfloat16* from) { return *reinterpret_cast<const uint4*>(from); }
__device__ inline uint4 load_eight(const std::int8_t* from) {
  const uint2 codes = *reinterpret_cast<const uint2*>(from);
  const auto two = [](std::uint32_t four, int i) { return pack_bf16(code_at(four, i), code_at(four, i + 1)); };
  return {two(codes.x, 0), two(codes.x, 2), two(codes.y, 0), two(codes.y, 2)};
}

/// Of two numbers a lane keeps one, and adds what the lane across, which keeps the other one, had of it.
__device__ inline float keep_one(bool is_second, float first, float second, int across) {
  return (is_second ? second : first) + __shfl_xor_sync(~0u, is_second ? first : second, across);
}

/// The same of several numbers, half of which a lane keeps, or of no more than two, which both keep.
template <int kIn, int kOut>
__device__ void add_across(const float (&in)[kIn], bool is_second, int across, float (&out)[kOut]) {
#pragma unroll
  for (int i = 0; i < kOut; ++i) {
    if constexpr (kIn == kOut) {
      out[i] = in[i] + __shfl_xor_sync(~0u, in[i], across);
    } else {
      out[i] = keep_one(is_second, in[i], in[i + kOut], across);
    }
  }
}

/// Which score of a part a lane has.
struct OwnScore {
  static_assert(kHeadsAtOnce == 2 && kKeysInPart == 8);

  int head, key;

  __device__ explicit OwnScore(int lane) : head(lane / 16), key(lane / 2 % 8) {}  // the lane next to it has it again

  /// Joins what lanes have of a head's eight keys.
  template <class Join>
  __device__ static float over_keys(float value, const Join& join) {
#pragma unroll
    for (int across = 2; across < 16; across *= 2) value = join(value, __shfl_xor_sync(~0u, value, across));
    return value;
  }
};

/// One warp: the queries' products with a part's keys. @return the one of OwnScore
///
/// With g = lane / 4 and t = lane % 4, rows g of the one operand are quarters g % 4 of head g / 4's query, whose
/// dimensions alternate in runs of 32; rows g + 8 are what rounding left over. Columns g of the other are the same
/// quarters of two keys. What a query's quarter gives with another quarter of a key is not used; so all lanes read
/// what lies side by side.
template <int kLaneDims, class Part>
__device__ float multiply_keys(const AttentionScratch& scratch, const Part& part, int head_dim, int lane) {
  constexpr int kPairs = kKeysInPart / 2;
  constexpr int kRuns = kLaneDims == 8 ? 2 : 1;  // of a quarter
  const int g = lane / 4;
  const int dim = g % 4 * 32 + lane % 4 * 8;
  float sums[kPairs][4] = {};
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    // Which of 32 dimensions a lane feeds to the tensor cores does not matter, as long as both operands agree.
    const uint4 query = load_eight(scratch.query[0][g / 4] + 128 * run + dim);
    const uint4 rest = load_eight(scratch.query[1][g / 4] + 128 * run + dim);
    // What a key does not have is multiplied by zeros.
    const int from = g / 4 * head_dim + min(128 * run + dim, head_dim - 8);
    uint4 keys[kPairs];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int k = 2 * pair;  // the next key is in the same stage
      keys[pair] = load_eight(part.stage_of(k).key(part.in_stage(k)) + from);
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
      multiply_accumulate(sums[pair], query.x, rest.x, query.y, rest.y, keys[pair].x, keys[pair].y);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
      multiply_accumulate(sums[pair], query.z, rest.z, query.w, rest.w, keys[pair].z, keys[pair].w);
  }
  // Of the columns 2t and 2t + 1, one may be the quarter of row g.
  const bool is_odd = g % 2 == 1, has_quarter = lane % 2 == g / 2 % 2;
  float scores[kPairs];
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    const float own = is_odd ? sums[pair][1] + sums[pair][3] : sums[pair][0] + sums[pair][2];
    scores[pair] = has_quarter ? own : 0;
  }
  // Added up over the lanes that have a head's quarters; of the pairs of keys, each keeps one.
  const float first = keep_one(lane & 8, scores[0], scores[2], 8);
  const float second = keep_one(lane & 8, scores[1], scores[3], 8);
  const float sum = keep_one(lane & 4, first, second, 4);
  return sum + __shfl_xor_sync(~0u, sum, 1);
}

/// One warp: leaves the weights of a part's values for all others.
/// @param piece  the first of those that the part lies in
/// @param index  of the part in its block
template <KvType kKv, int kLaneDims, class Format>
__device__ void weigh_part(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                           AttentionScratch& scratch, const BlockRun& run, int block, int piece, int index) {
  using Part = PartInStages<kKv, kLaneDims, Format>;
  const int first_key = block * kBlockKeys + index * kKeysInPart;
#pragma unroll
  for (int i = 0; i < Part::kStages; ++i) shared.stream.wait_until_full(piece + i);
  if (first_key < run.range.first || first_key + kKeysInPart > run.range.last)
    complete_part<kKv, kLaneDims>(model, shared, layer, scratch, run, piece, first_key);
  const Part part(shared.stream, piece, model.head_dim);
  const int lane = thread_index() % 32;
  float product = multiply_keys<kLaneDims>(scratch, part, model.head_dim, lane);
  const OwnScore own(lane);
  float value_scale = 1;
  if constexpr (KvFormat<kKv>::kHasScales) {
    const typename Part::Stage stage{
        reinterpret_cast<typename Part::Element*>(shared.stream.stage(piece + own.key / Part::kKeysInStage)),
        model.head_dim};
    product *= *stage.key_scale(Part::in_stage(own.key));
    value_scale = *stage.value_scale(Part::in_stage(own.key));
  }
  const int position = first_key + own.key;
  const bool is_seen = position >= run.range.first && position <= run.range.last;
  // At least one key of a part is seen.
  const float score = is_seen ? soft_cap(product, model.attention_softcap) : kMaskedScore;
  const float largest = OwnScore::over_keys(score, [](float a, float b) { return fmaxf(a, b); });
  float weight = is_seen ? expf(score - largest) : 0.0f;
  const float sum = OwnScore::over_keys(weight, [](float a, float b) { return a + b; });
  // A scale that the row does not see may be anything, too.
  if constexpr (KvFormat<kKv>::kHasScales) weight = is_seen ? weight * value_scale : 0.0f;
  if (lane % 2 == 0) scratch.weights[index * kKeysInPart + own.key][own.head] = weight;
  if (lane % 16 == 0) scratch.parts[own.head][index] = {largest, sum};
}

// --- a block: up to eight parts ---

/// Parts of a block, counted from its first key.
struct Parts {
  int first, last;  // [first, last)

  __device__ bool has(int part) const { return part >= first && part < last; }
};

/// Of one part of a block of keys, what a lane has: weighted sums of some elements of its values, for two heads. Four
/// lanes of each warp have a part, and the eight warps together all elements.
/// @tparam kDims  lane_dims()
template <int kDims>
struct PartSums {
  static_assert(kHeadsAtOnce == 2 && kPartsInBlock == 8 && kConsumerWarps == 8);

  float values[kHeadsAtOnce][kDims];
};

/// Whose sums and results a thread has.
/// @tparam kDims  of PartSums
template <int kDims>
struct OwnSums {
  int lane;
  int part;       // in the block
  int first_dim;  // of PartSums
  // Of BlockResult:
  int head;  // of two
  int dim;
  bool is_first;  // of the lanes that have the same result

  __device__ explicit OwnSums(int thread)
      : lane(thread % 32),
        part(lane / 4),
        first_dim((thread / 32 * 4 + lane % 4) * kDims),
        head(lane / 16),
        dim(first_dim + (kDims == 8   ? lane / 4 % 4 * 2
                         : kDims == 4 ? lane / 8 % 2 * 2
                                      : 0)),
        is_first(kDims == 8 || (kDims == 4 ? lane / 4 % 2 == 0 : lane / 4 % 4 == 0)) {}
};

/// Neighbouring elements.
template <int kDims>
__device__ void load_dims(const __nv_bfloat16* from, float (&out)[kDims]) {
  const auto words = *reinterpret_cast<const ElementWords<kDims, __nv_bfloat16>*>(from);
  const auto* const pairs = reinterpret_cast<const std::uint32_t*>(&words);
#pragma unroll
  for (int i = 0; i < kDims / 2; ++i) {
    out[2 * i] = low_half(pairs[i]);
    out[2 * i + 1] = high_half(pairs[i]);
  }
}
template <int kDims>
__device__ void load_dims(const std::int8_t* from, float (&out)[kDims]) {
  const auto words = *reinterpret_cast<const ElementWords<kDims, std::int8_t>*>(from);
  std::uint32_t codes[2] = {};
  if constexpr (kDims == 8) {
    codes[0] = words.x;
    codes[1] = words.y;
  } else {
    codes[0] = words;
  }
#pragma unroll
  for (int i = 0; i < kDims; ++i) out[i] = code_at(codes[i / 4], i % 4);
}

/// Adds up the values of a part, whose weights are there.
/// @param index  of the part in its block
/// @param dim    the first of the lane's elements
template <int kDims, class Part>
__device__ PartSums<kDims> add_values(const AttentionScratch& scratch, const Part& part, int index, int dim) {
  PartSums<kDims> sums = {};
#pragma unroll
  for (int k = 0; k < kKeysInPart; ++k) {
    float value[kDims];
    load_dims(part.stage_of(k).value(part.in_stage(k)) + dim, value);
    const float2 weights = *reinterpret_cast<const float2*>(scratch.weights[index * kKeysInPart + k]);
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      sums.values[0][i] = fmaf(weights.x, value[i], sums.values[0][i]);
      sums.values[1][i] = fmaf(weights.y, value[i], sums.values[1][i]);
    }
  }
  return sums;
}

/// Two elements of attention over a block, normalised.
struct BlockResult {
  float2 values;
  Softmax softmax;
};

/// Puts the parts of a block together.
/// @param parts  that are there, at least one
template <int kDims>
__device__ BlockResult put_together(const AttentionScratch& scratch, const PartSums<kDims>& sums, const Parts& parts,
                                    const OwnSums<kDims>& whose) {
  const bool has_part = parts.has(whose.part);
  // Of a part's four lanes, two work out what it counts for with either head.
  const int head = whose.lane % 2;
  Softmax own{kMaskedScore, 0};
  if (has_part) own = scratch.parts[head][whose.part];
  float largest = own.largest;
#pragma unroll
  for (int across = 4; across < 32; across *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, across));
  const float factor = has_part ? expf(own.largest - largest) : 0.0f;
  float sum = __fmul_rn(factor, own.sum);
#pragma unroll
  for (int across = 4; across < 32; across *= 2) sum += __shfl_xor_sync(~0u, sum, across);
  const float other_factor = __shfl_xor_sync(~0u, factor, 1);
  const float factors[kHeadsAtOnce] = {head == 0 ? factor : other_factor, head == 0 ? other_factor : factor};
  float added[kHeadsAtOnce][kDims];
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    // What a lane has for a part that is not there is of another one, and counts for nothing.
#pragma unroll
    for (int i = 0; i < kDims; ++i) added[h][i] = __fmul_rn(factors[h], sums.values[h][i]);
  }
  // Lanes share out the elements while they add them up: first the heads, then halves of the dimensions, down to two.
  constexpr int kHalf = kDims > 2 ? kDims / 2 : 2;
  float of_head[kDims], half[kHalf], two[2];
#pragma unroll
  for (int i = 0; i < kDims; ++i) of_head[i] = keep_one(whose.lane & 16, added[0][i], added[1][i], 16);
  add_across(of_head, whose.lane & 8, 8, half);
  add_across(half, whose.lane & 4, 4, two);
  const Softmax of_block{__shfl_sync(~0u, largest, whose.head), __shfl_sync(~0u, sum, whose.head)};
  const float inverse = 1 / of_block.sum;
  return {{__fmul_rn(two[0], inverse), __fmul_rn(two[1], inverse)}, of_block};
}

/// @param qkv      what the last product gave: qkv.row(i).read() as ProductRow's
/// @param results  CombinedResults, or alike
template <KvType kKv, int kLaneDims, class Format, class Qkv, class Results>
__device__ void attend(const DecodeModel& model, const CacheLayer& layer, const Shared<Format>& shared,
                       BlockRuns<kKv>& runs, const Qkv& qkv, const Results& results, int& next_piece) {
  using Part = PartInStages<kKv, kLaneDims, Format>;
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  AttentionScratch& scratch = *reinterpret_cast<AttentionScratch*>(shared.scratch);
  const bool is_halved = can_halve_blocks<kKv, Format>(kArchitecture, kLaneDims) &&
                         shared.stream.stages < stages_of_attention<kKv, Format>(kLaneDims);

  for (; !runs.is_done(); runs.advance(model, shared, layer)) {
    const BlockRun& run = runs.run();
    for (int block = run.first; block < run.first + run.count; ++block) {
      const int first_part = run.range.first_part(block);
      const Parts all{first_part, first_part + run.range.parts(block)};
      const int own_part =
          first_part + (thread_index() / 32 - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps;
      const auto piece_of = [&](int part) { return next_piece + (part - first_part) * Part::kStages; };
      for (int first = 0; first < group_heads; first += kHeadsAtOnce) {
        const int heads = min(kHeadsAtOnce, group_heads - first);
        const int first_head = run.kv_head * group_heads + first;
        // With no more heads than are worked on at once, the queries serve the whole run.
        if (block == run.first || group_heads > kHeadsAtOnce)
          prepare_attention<kKv, kLaneDims>(model, shared, layer, scratch, run, first_head, heads, qkv.row(run.row));
        consumer_barrier();
        PartSums<kLaneDims> sums;
        const OwnSums<kLaneDims> whose(thread_index());
        const auto attend_to = [&](const Parts& parts) {
          if (parts.has(own_part))
            weigh_part<kKv, kLaneDims>(model, shared, layer, scratch, run, block, piece_of(own_part), own_part);
          consumer_barrier();
          // Lanes of a part that is not there take another one, without a branch.
          const int index = min(max(whose.part, parts.first), parts.last - 1);
          const auto added = add_values<kLaneDims>(scratch, Part(shared.stream, piece_of(index), head_dim), index,
                                                   min(whose.first_dim, head_dim - kLaneDims));
          if (!is_halved || parts.has(whose.part)) sums = added;
          consumer_barrier();
          if (parts.has(own_part) && first + kHeadsAtOnce >= group_heads) {
#pragma unroll
            for (int i = 0; i < Part::kStages; ++i) shared.stream.release(piece_of(own_part) + i);
          }
        };
        if (can_halve_blocks<kKv, Format>(kArchitecture, kLaneDims) && is_halved) {
          constexpr int kHalf = kPartsInBlock / 2;
          const Parts lower{all.first, min(all.last, kHalf)}, upper{max(all.first, kHalf), all.last};
          sums = {};
#pragma unroll 1
          for (const Parts& half : {lower, upper}) {
            if (half.first < half.last) attend_to(half);
          }
        } else {
          attend_to(all);
        }
        const BlockResult result = put_together(scratch, sums, all, whose);
        if (whose.is_first && whose.head < heads && whose.dim < head_dim)
          results.put(model, run, first_head + whose.head, block - run.range.first_block(), whose.dim, result.values,
                      result.softmax);
      }
      next_piece = piece_of(all.last);
    }
    results.end_run(model, shared, run);
  }
}

}  // namespace gemma
