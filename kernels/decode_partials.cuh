#pragma once

// How attention over all of a row's keys is put together from attention over blocks of 64 keys.
//
// What a block gives is normalised and comes with its largest score and the sum of its exponentials, by which it is
// weighted. Blocks are combined in ascending order in groups of 16, and then the groups. Of long texts, whichever
// thread block finishes last does it. Of short texts all of them do, when they have met: each some of the elements, or
// of a single row with few of them all for itself. Where numbers are messages, each sees to a slice. The order is
// always the same.

#include <type_traits>

#include "decode_digits.cuh"
#include "decode_keys.cuh"
#include "decode_message.cuh"
#include "decode_product.cuh"

namespace gemma {

/// Scores of some keys: the largest, and the sum of their exponentials relative to it.
struct Softmax {
  float largest, sum;

  /// What attention over these keys counts for beside that over others.
  /// @param of_all  the largest score of all of them
  __device__ float weight(float of_all) const { return __fmul_rn(expf(largest - of_all), sum); }
};

// --- partial results in memory ---

/// How elements of partial results are kept: in half precision where decode is bound by the multiprocessors and not by
/// memory, which reads them sooner then. Their rounding is a quarter of what the whole is rounded by afterwards, to
/// bf16; values beyond 65,504 become infinite.
template <class Format>
struct PartialElements {
  static constexpr bool kAreShort = has_short_partials(Format::kLayers);
  using Pair = std::conditional_t<kAreShort, __half2, float2>;

  __device__ static void put(void* partials, std::size_t element, float2 values) {
    if constexpr (kAreShort) {
      const __half2 pair = __floats2half2_rn(values.x, values.y);
      __stcg(static_cast<std::uint32_t*>(partials) + element / 2, reinterpret_cast<const std::uint32_t&>(pair));
    } else {
      __stcg(reinterpret_cast<float2*>(static_cast<float*>(partials) + element), values);
    }
  }
  __device__ static Pair get(const void* partials, std::size_t element) {
    if constexpr (kAreShort) {
      const std::uint32_t pair = __ldcg(static_cast<const std::uint32_t*>(partials) + element / 2);
      return reinterpret_cast<const __half2&>(pair);
    } else {
      return __ldcg(reinterpret_cast<const float2*>(static_cast<const float*>(partials) + element));
    }
  }
  /// Two neighbouring pairs.
  __device__ static void get(const void* partials, std::size_t element, Pair (&pairs)[2]) {
    if constexpr (kAreShort) {
      const uint2 words = __ldcg(reinterpret_cast<const uint2*>(static_cast<const __half*>(partials) + element));
      pairs[0] = reinterpret_cast<const __half2&>(words.x);
      pairs[1] = reinterpret_cast<const __half2&>(words.y);
    } else {
      const float4 four = __ldcg(reinterpret_cast<const float4*>(static_cast<const float*>(partials) + element));
      pairs[0] = {four.x, four.y};
      pairs[1] = {four.z, four.w};
    }
  }
};

__device__ inline float2 to_floats(__half2 pair) { return __half22float2(pair); }
__device__ inline float2 to_floats(float2 pair) { return pair; }

// --- combining them ---

/// Takes up to kAtOnce partial results over neighbouring keys into those of the keys before. Weights are added up as a
/// butterfly over lanes does it, what they weigh in order.
template <int kAtOnce, class PartialSums, class PartialOut>
__device__ void merge(int count, Softmax& softmax, float2& values, const PartialSums& partial_sums,
                      const PartialOut& partial_out) {
  Softmax sums[kAtOnce] = {};
  float2 outs[kAtOnce] = {};
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j >= count) continue;
    sums[j] = partial_sums(j);
    outs[j] = partial_out(j);
  }
  float largest = softmax.largest;
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j < count) largest = fmaxf(largest, sums[j].largest);
  }
  float weights[kAtOnce], added[kAtOnce];
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) weights[j] = added[j] = j < count ? sums[j].weight(largest) : 0;
#pragma unroll
  for (int step = 1; step < kAtOnce; step *= 2) {
#pragma unroll
    for (int j = 0; j < kAtOnce; j += 2 * step) added[j] += added[j + step];
  }
  const float before = softmax.weight(largest);
  softmax = {largest, before + added[0]};
  const float inverse = 1 / softmax.sum;
  values = {__fmul_rn(values.x, __fmul_rn(before, inverse)), __fmul_rn(values.y, __fmul_rn(before, inverse))};
#pragma unroll
  for (int j = 0; j < kAtOnce; ++j) {
    if (j >= count) continue;
    const float share = __fmul_rn(weights[j], inverse);
    values = {fmaf(share, outs[j].x, values.x), fmaf(share, outs[j].y, values.y)};
  }
}

/// One warp: combines `count` partial results over neighbouring keys, kAtOnce of them at a time, as merge() does. Lanes
/// have neighbouring pairs of elements of one head, and share out what is the same for all of them, the weights of the
/// partial results.
/// @param partial_out   called with the index of a partial result, if the lane has_pair
/// @param partial_sums  the same, whichever pair the lane has
/// @param values        the lane's pair
template <int kAtOnce, class PartialOut, class PartialSums>
__device__ Softmax combine(int count, bool has_pair, const PartialOut& partial_out, const PartialSums& partial_sums,
                           float2& values) {
  static_assert(kAtOnce <= 32);
  using Pair = decltype(partial_out(0));
  const int lane = lane_index();
  Softmax softmax{kMaskedScore, 0};
  values = {0, 0};
  for (int first = 0; first < count; first += kAtOnce) {
    const int parts = min(kAtOnce, count - first);
    Softmax sums = {kMaskedScore, 0};  // of part `lane`
    if (lane < parts) sums = partial_sums(first + lane);
    Pair outs[kAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (j < parts && has_pair) outs[j] = partial_out(first + j);
    }
    float largest = fmaxf(softmax.largest, sums.largest);
#pragma unroll
    for (int across = 1; across < kAtOnce; across *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, across));
    largest = __shfl_sync(~0u, largest, 0);
    const float weight = sums.weight(largest);
    float added = weight;
#pragma unroll
    for (int across = 1; across < kAtOnce; across *= 2) added += __shfl_xor_sync(~0u, added, across);
    const float before = softmax.weight(largest);
    softmax = {largest, before + __shfl_sync(~0u, added, 0)};
    const float inverse = 1 / softmax.sum;
    const float share = __fmul_rn(weight, inverse);
    values = {__fmul_rn(values.x, __fmul_rn(before, inverse)), __fmul_rn(values.y, __fmul_rn(before, inverse))};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const float part_share = __shfl_sync(~0u, share, j);
      if (j >= parts) continue;
      const float2 out = to_floats(outs[j]);
      values = {fmaf(part_share, out.x, values.x), fmaf(part_share, out.y, values.y)};
    }
  }
  return softmax;
}

/// Partial results in memory, of which each head has `wide`.
template <class Format>
struct PartialResults {
  void* outs;    // [heads of all rows, wide, head_dim]: PartialElements
  float2* sums;  // [heads of all rows, wide]
  int wide;

  /// One warp: combines some of a head.
  /// @param head   of all rows
  /// @param first  of `count` partial results
  /// @param dim    the lane's pair; head_dim or more: none
  __device__ Softmax combine(int head, int first, int count, int dim, int head_dim, float2& values) const {
    const std::size_t begin = static_cast<std::size_t>(head) * wide + first;
    return gemma::combine<kBlocksInGroup>(
        count, dim < head_dim,
        [&](int part) { return PartialElements<Format>::get(outs, (begin + part) * head_dim + dim); },
        [&](int part) {
          const float2 of_part = __ldcg(sums + begin + part);
          return Softmax{of_part.x, of_part.y};
        },
        values);
  }
  __device__ void put(int head, int part, int dim, int head_dim, float2 values, const Softmax& softmax) const {
    const std::size_t at = static_cast<std::size_t>(head) * wide + part;
    PartialElements<Format>::put(outs, at * head_dim + dim, values);
    if (dim == 0) __stcg(sums + at, make_float2(softmax.largest, softmax.sum));
  }
};

template <class Format>
__device__ PartialResults<Format> results_of_blocks(const DecodeModel& model) {
  return {model.partials, model.partial_sums, model.max_blocks};
}
template <class Format>
__device__ PartialResults<Format> results_of_groups(const DecodeModel& model) {
  return {model.group_partials, model.group_sums, (model.max_blocks + kBlocksInGroup - 1) / kBlocksInGroup};
}

/// Pairs of a head that a warp combines at once.
inline constexpr int kPairsInChunk = 32;
__device__ inline int chunks_of_head(int head_dim) { return (head_dim / 2 + kPairsInChunk - 1) / kPairsInChunk; }

template <class Attended>
__device__ void put_attended(const Attended& attended, int row, int element, float2 values) {
  __stcg(reinterpret_cast<std::uint32_t*>(attended.at(row, element)), pack_bf16(values.x, values.y));
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

/// After a run's partial results are written, of a text of several groups: combines what is complete with it, its group
/// and then all groups. One copy of the code for both: the instruction cache holds little more than a layer's.
template <class Format, class Attended>
__device__ void combine_blocks(const DecodeModel& model, const Shared<Format>& shared, const Attended& attended,
                               const BlockRun& run) {
  const PartialResults<Format> of_groups = results_of_groups<Format>(model);
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  const int group = run.group(), groups = run.groups();
  unsigned* arrivals =
      model.block_arrivals + static_cast<std::size_t>(run.row * model.kv_heads + run.kv_head) * (of_groups.wide + 1);
  if (!report_done(shared, arrivals + group, run.count, run.blocks_in_group())) return;
#pragma unroll 1
  for (bool are_groups = false;; are_groups = true) {
    const PartialResults<Format> results = are_groups ? of_groups : results_of_blocks<Format>(model);
    const int chunks = chunks_of_head(head_dim);
    for (int unit = warp_index(); unit < group_heads * chunks; unit += kConsumerWarps) {
      const int head = run.kv_head * group_heads + unit / chunks;
      const int dim = (unit % chunks * kPairsInChunk + lane_index()) * 2;
      float2 values;
      const Softmax softmax = results.combine(run.row * model.heads + head, are_groups ? 0 : group * kBlocksInGroup,
                                              are_groups ? groups : run.blocks_in_group(), dim, head_dim, values);
      if (dim >= head_dim) continue;
      if (are_groups) {
        put_attended(attended, run.row, head * head_dim + dim, values);
      } else {
        of_groups.put(run.row * model.heads + head, group, dim, head_dim, values, softmax);
      }
    }
    if (are_groups || !report_done(shared, arrivals + of_groups.wide, 1, groups)) return;
  }
}

// --- where attention leaves its results, for others to read ---

/// Each block's as it is, until all of them are there. Those of a long text are combined by whichever thread block
/// finishes last, others are left to combine_short_texts() (or combine_in_digits()).
/// @tparam Attended  the next product's input: attended.at(row, column)
template <class Format, class Attended>
struct CombinedResults {
  Attended attended;

  /// @param head  of all heads
  __device__ void put(const DecodeModel& model, const BlockRun& run, int head, int block, int dim, float2 values,
                      const Softmax& softmax) const {
    results_of_blocks<Format>(model).put(run.row * model.heads + head, block, dim, model.head_dim, values, softmax);
  }
  __device__ void end_run(const DecodeModel& model, const Shared<Format>& shared, const BlockRun& run) const {
    if (run.groups() > 1) combine_blocks(model, shared, attended, run);
  }
};

/// Whether a text is so short that its blocks of keys make one group.
__device__ inline bool is_short_text(const DecodeModel& model, const CacheLayer& layer, int position) {
  return visible_keys(model, layer, position).blocks() <= kBlocksInGroup;
}

/// Whether one of the rows' texts is.
template <class Format>
__device__ bool has_short_texts(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                                int rows) {
  bool has_one = false;
  for (int row = 0; row < rows; ++row) has_one = has_one || is_short_text(model, layer, shared.position[row]);
  return has_one;
}

/// All consumers of all blocks, when all blocks of keys have been attended to: combines attention of those rows whose
/// texts are short. A warp works on one head's elements, or on 64 of them.
template <class Format, class Attended>
__device__ void combine_short_texts(const DecodeModel& model, const Shared<Format>& shared, const CacheLayer& layer,
                                    int rows, const Attended& attended) {
  const PartialResults<Format> results = results_of_blocks<Format>(model);
  const int chunks = chunks_of_head(model.head_dim);
  const int units = rows * model.heads * chunks;
  const int grid = static_cast<int>(gridDim.x);
  const int thread = thread_index();
  for (int unit = thread / 32 * grid + static_cast<int>(blockIdx.x); unit < units; unit += kConsumerWarps * grid) {
    const int head = unit / chunks;  // of all rows
    const int row = head / model.heads;
    if (!is_short_text(model, layer, shared.position[row])) continue;
    const int dim = (unit % chunks * kPairsInChunk + thread % 32) * 2;
    float2 values;
    results.combine(head, 0, visible_keys(model, layer, shared.position[row]).blocks(), dim, model.head_dim, values);
    if (dim < model.head_dim) put_attended(attended, row, (head - row * model.heads) * model.head_dim + dim, values);
  }
}

/// Results of a single row, as messages, which combine_slices() reads.
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
  Softmax sums[kSlices][kBlocksInGroup];
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

  if (groups > 1) consumer_barrier();  // before what attend() has left in the scratch memory is written over
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
      float weights[2], added[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights[i] = added[i] = part_softmax[i].weight(largest);
#pragma unroll
        for (int across = 1; across < kPairs; across *= 2) added[i] += __shfl_xor_sync(~0u, added[i], across);
      }
      const float sum = added[0] + added[1];
      float2 group_values = {0, 0};
#pragma unroll
      for (int i = 0; i < 2; ++i) weights[i] = __fmul_rn(weights[i], 1 / sum);
#pragma unroll
      for (int i = 0; i < kBlocksInGroup; ++i) {
        const float share = __shfl_sync(~0u, weights[i / kPairs], first_lane + i % kPairs);
        if (i >= count) continue;
        group_values = {fmaf(share, value_of(found[i].x), group_values.x),
                        fmaf(share, value_of(found[i].y), group_values.y)};
      }
      if (groups == 1) {
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
      const unsigned first = short_message(values.x, tag);
      const unsigned second = short_message(values.y, tag);
      store_relaxed(
          reinterpret_cast<unsigned long long*>(model.messages.attended + operand_order(head * model.head_dim + dim)),
          static_cast<unsigned long long>(second) << 32 | first);
    }
  }
}

// --- a single row whose numbers are not messages ---

/// Whether every thread block combines a row's attention for itself: where there are no more blocks of keys than one
/// group, and partial results are so few that reading all of them takes less time than a block's combining them first.
template <class Format>
__device__ bool combines_everywhere(const DecodeModel& model, int blocks) {
  constexpr int kMostElements = 20 * 1024;
  return blocks <= kBlocksInGroup && model.heads * 2 * kBlocksInGroup * 4 <= least_scratch_bytes(kArchitecture, 1) &&
         blocks * model.heads * model.head_dim <= kMostElements;
}

/// All consumers, when all blocks of keys have been attended to: combines what the only row's blocks of keys gave, and
/// makes digits of it.
/// @param blocks  that the row sees; combines_everywhere()
/// @param to      [heads * head_dim], in shared memory
template <class Format>
__device__ void combine_in_digits(const DecodeModel& model, const Shared<Format>& shared, int blocks,
                                  const DigitRow& to) {
  constexpr int kUnits = 2;    // of four columns, that a thread works on at once
  constexpr int kAtOnce = 12;  // blocks
  constexpr int kWide = 2 * kAtOnce;
  static_assert(kWide >= kBlocksInGroup && kWide <= 2 * kBlocksInGroup);
  using Elements = PartialElements<Format>;
  float* const shares = shared.scratch;  // [heads, kWide] of the blocks; what is not there has none
  const int thread = thread_index();
  const int units = model.heads * model.head_dim / 4;
  for (int first = 0; first < units; first += kUnits * kConsumers) {
    int heads[kUnits];
    std::size_t at[kUnits];
    typename Elements::Pair found[kUnits][kAtOnce][2] = {};
    const auto ask = [&](int first_block) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          // Without a block, what was found before stays: its share is 0.
          if (first_block + j < blocks)
            Elements::get(model.partials, at[i] + (first_block + j) * model.head_dim, found[i][j]);
        }
      }
    };
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int column = 4 * min(first + i * kConsumers + thread, units - 1);
      heads[i] = column / model.head_dim;
      at[i] = static_cast<unsigned>(heads[i] * (model.max_blocks - 1) * model.head_dim + column);
    }
    ask(0);
    if (first == 0) {
      const int block = thread % kBlocksInGroup;
      for (int base = 0; base < model.heads; base += kConsumers / kBlocksInGroup) {
        const int head = base + thread / kBlocksInGroup;
        Softmax softmax{kMaskedScore, 0};
        if (head < model.heads && block < blocks) {
          const float2 sums = __ldcg(model.partial_sums + head * model.max_blocks + block);
          softmax = {sums.x, sums.y};
        }
        float largest = softmax.largest;
#pragma unroll
        for (int across = 1; across < kBlocksInGroup; across *= 2)
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, across));
        const float weight = softmax.weight(largest);
        float sum = weight;
#pragma unroll
        for (int across = 1; across < kBlocksInGroup; across *= 2) sum += __shfl_xor_sync(~0u, sum, across);
        if (head < model.heads) {
          shares[head * kWide + block] = __fmul_rn(weight, 1 / sum);
          if (block < kWide - kBlocksInGroup) shares[head * kWide + kBlocksInGroup + block] = 0;
        }
      }
      consumer_barrier();
    }
    float4 attended[kUnits] = {};
    for (int first_block = 0;;) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
#pragma unroll
        for (int j = 0; j < kAtOnce; j += 4) {
          const float4 four = *reinterpret_cast<const float4*>(shares + heads[i] * kWide + first_block + j);
          const float share[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float2 low = to_floats(found[i][j + k][0]), high = to_floats(found[i][j + k][1]);
            attended[i] = {fmaf(share[k], low.x, attended[i].x), fmaf(share[k], low.y, attended[i].y),
                           fmaf(share[k], high.x, attended[i].z), fmaf(share[k], high.y, attended[i].w)};
          }
        }
      }
      first_block += kAtOnce;
      if (first_block >= blocks) break;
      ask(first_block);
    }
#pragma unroll
    for (float4& four : attended) {
      const std::uint32_t words[2] = {pack_bf16(four.x, four.y), pack_bf16(four.z, four.w)};
      four = {low_half(words[0]), high_half(words[0]), low_half(words[1]), high_half(words[1])};
    }
    make_digits_of_units<kNeedsSums<Format::kLayers>, kLeastScale>(
        attended, [&](int i, const FourDigits& four, const DigitGroup& group) {
          const int unit = first + i * kConsumers + thread;
          if (unit < units) to.put(unit, four, group);
        });
  }
}

}  // namespace gemma
