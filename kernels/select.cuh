#pragma once

// The largest of a row of logits, found by one thread block without sorting the row.
//
// A logit and its token make a key: 64 bits that order as candidates do, the larger logit first, the lower id first
// among equals. No two keys of a row are equal. A row is cut into groups of 256 logits, one warp's work; the largest
// key of each group is known from an earlier pass, so that only groups that hold wanted keys are read again.
//
// Masses are probabilities in fixed point. Their sums are exact, so that no order of threads can change a result.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "ptx.cuh"

namespace gemma {

inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / 32;
inline constexpr int kGroupLogits = 256;
inline constexpr int kLaneLogits = kGroupLogits / 32;
inline constexpr int kListKeys = 2048;
inline constexpr int kBinBits = 11;
inline constexpr int kBins = 1 << kBinBits;
inline constexpr float kLargestFloat = 3.402823466e+38f;

static_assert(kListKeys == kBins && kBins % kSampleThreads == 0);

__device__ inline int sample_warp() { return static_cast<int>(threadIdx.x / 32); }
__device__ inline int sample_lane() { return static_cast<int>(threadIdx.x % 32); }

// --- keys ---

using Key = std::uint64_t;  ///< 0 is no key

/// An integer that orders as floats do; both zeros are equal.
__device__ inline std::uint32_t order_of(float x) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits ^ ((bits >> 31) != 0 ? ~0u : 0x80000000u);
}

__device__ inline float float_of(std::uint32_t order) {
  return __uint_as_float((order >> 31) != 0 ? order ^ 0x80000000u : ~order);
}

__device__ inline Key make_key(float logit, int token) {
  return Key{order_of(logit)} << 32 | (0xffffffffu - static_cast<std::uint32_t>(token));
}

__device__ inline float logit_of(Key key) { return float_of(static_cast<std::uint32_t>(key >> 32)); }
__device__ inline int token_of(Key key) { return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(key)); }

/// Keys from `lowest`, which is not 0, to `highest`, both included.
struct KeyRange {
  Key lowest = 1;
  Key highest = ~Key{0};
};

/// A logit that can be compared and subtracted: NaN counts as minus infinity, infinity as `largest`.
__device__ inline float usable(float logit, float largest) { return isnan(logit) ? -INFINITY : fminf(logit, largest); }

/// One row of logits: as the model left them, or as the draw sees them, with the repeat penalty.
struct LogitsView {
  const float* logits;  // [vocab]
  int vocab;
  float largest;      // what infinity counts as
  const int* recent;  // [recent_count], in shared memory: tokens that the penalty applies to
  int recent_count;
  float penalty;

  __device__ int groups() const { return (vocab + kGroupLogits - 1) / kGroupLogits; }

  /// The token of element i of the present lane.
  __device__ static int token(int group, int i) {
    return group * kGroupLogits + i / 4 * 128 + sample_lane() * 4 + i % 4;
  }

  /// The lane's share of a group, as it lies in memory; minus infinity beyond the vocabulary.
  __device__ void load(int group, float (&x)[kLaneLogits]) const {
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(logits) % 16 == 0;
    if (is_aligned && (group + 1) * kGroupLogits <= vocab) {
#pragma unroll
      for (int i = 0; i < kLaneLogits; i += 4) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(logits + token(group, i)));
        x[i] = four.x;
        x[i + 1] = four.y;
        x[i + 2] = four.z;
        x[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLaneLogits; ++i)
        x[i] = token(group, i) < vocab ? __ldcg(logits + token(group, i)) : -INFINITY;
    }
  }

  /// Makes usable logits, with the penalty, of loaded ones. By all lanes of a warp together.
  __device__ void prepare(int group, float (&x)[kLaneLogits]) const {
    unsigned penalised = 0;  // a bit for each element, so that a token that is in the list twice is penalised once
    for (int first = 0; first < recent_count; first += 32) {
      const int mine = first + sample_lane() < recent_count ? recent[first + sample_lane()] : -1;
      unsigned here = __ballot_sync(~0u, mine >= 0 && mine / kGroupLogits == group);
      for (; here != 0; here &= here - 1) {
        const int in_group = recent[first + __ffs(static_cast<int>(here)) - 1] % kGroupLogits;
        if (in_group % 128 / 4 == sample_lane()) penalised |= 1u << (in_group / 128 * 4 + in_group % 4);
      }
    }
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) {
      if ((penalised >> i & 1) != 0) x[i] = x[i] > 0 ? __fdiv_rn(x[i], penalty) : __fmul_rn(x[i], penalty);
      x[i] = usable(x[i], largest);
    }
  }

  /// The key of element i of the present lane; 0 beyond the vocabulary.
  __device__ Key key(int group, int i, float logit) const {
    return token(group, i) < vocab ? make_key(logit, token(group, i)) : 0;
  }
};

/// The row and the largest key of each of its groups: [groups]
struct KeySource {
  LogitsView view;
  const Key* group_largest;

  /// Calls visit(key) for every key in the range, each from one thread. By all threads of the block together.
  template <class Visit>
  __device__ void for_each_key(const KeyRange& range, const Visit& visit) const {
    constexpr int kAtOnce = 4;  // groups a warp has on their way from memory
    const int groups = view.groups();
    for (int first = sample_warp(); first < groups; first += 32 * kSampleWarps) {
      const int mine = first + sample_lane() * kSampleWarps;
      unsigned wanted = __ballot_sync(~0u, mine < groups && __ldcg(group_largest + mine) >= range.lowest);
      while (wanted != 0) {
        int group[kAtOnce];
        float x[kAtOnce][kLaneLogits];
#pragma unroll
        for (int g = 0; g < kAtOnce; ++g) {
          group[g] = wanted != 0 ? first + (__ffs(static_cast<int>(wanted)) - 1) * kSampleWarps : -1;
          wanted &= wanted - 1;
          if (group[g] >= 0) view.load(group[g], x[g]);
        }
        // Not unrolled, for the sake of the code's size: the groups move up to where the first one was.
#pragma unroll 1
        while (group[0] >= 0) {
          view.prepare(group[0], x[0]);
#pragma unroll
          for (int i = 0; i < kLaneLogits; ++i) {
            const Key key = view.key(group[0], i, x[0][i]);
            if (key >= range.lowest && key <= range.highest) visit(key);
          }
#pragma unroll
          for (int g = 0; g + 1 < kAtOnce; ++g) {
            group[g] = group[g + 1];
#pragma unroll
            for (int i = 0; i < kLaneLogits; ++i) x[g][i] = x[g + 1][i];
          }
          group[kAtOnce - 1] = -1;
        }
      }
    }
  }
};

// --- reductions ---

__device__ inline Key warp_largest(Key key) {
  const auto high = static_cast<unsigned>(key >> 32);
  const unsigned largest = __reduce_max_sync(~0u, high);
  return Key{largest} << 32 | __reduce_max_sync(~0u, high == largest ? static_cast<unsigned>(key) : 0u);
}

/// Combines the values of all threads of the block, always in the same order; every thread gets the result.
template <class T, class Combine>
__device__ T block_reduce(T value, const Combine& combine) {
  __shared__ T of_warp[kSampleWarps];
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();
  if (sample_lane() == 0) of_warp[sample_warp()] = value;
  __syncthreads();
  T result = of_warp[0];
  for (int warp = 1; warp < kSampleWarps; ++warp) result = combine(result, of_warp[warp]);
  return result;
}

template <class T>
__device__ T block_sum(T value) {
  return block_reduce(value, [](T a, T b) { return a + b; });
}

template <class T>
__device__ T block_max(T value) {
  return block_reduce(value, [](T a, T b) { return a < b ? b : a; });
}

// --- selection ---

/// How many candidates there are in a stretch, and their mass.
struct Measure {
  std::uint64_t mass = 0;
  std::uint64_t count = 0;

  __device__ Measure operator+(const Measure& other) const { return {mass + other.mass, count + other.count}; }
};

/// A point in the descending order of candidates: where the candidates so far reach `threshold` in mass or in number.
struct Goal {
  bool is_mass;
  std::uint64_t threshold;  // at least 1, at most that of all candidates

  __device__ bool is_reached(const Measure& so_far) const {
    return (is_mass ? so_far.mass : so_far.count) >= threshold;
  }
};

/// The entry with which a goal is reached, and all candidates before it and through it.
struct Crossing {
  int index;
  Measure before, through;
};

/// What a block has in shared memory to select with.
struct Selection {
  Key list[kListKeys];
  std::uint64_t mass[kBins];  // of bins, or of the keys in the list, in descending order
  unsigned count[kBins];
  Measure of_warp[kSampleWarps];
  Crossing crossing;
  unsigned listed;
};

/// A 64-bit sum in shared memory, out of two 32-bit ones, for which there is an instruction.
__device__ inline void add_shared(std::uint64_t* sum, std::uint64_t value) {
  auto* halves = reinterpret_cast<unsigned*>(sum);
  const auto low = static_cast<unsigned>(value);
  const unsigned old = atomicAdd(&halves[0], low);
  const unsigned high = static_cast<unsigned>(value >> 32) + (old + low < old ? 1u : 0u);
  if (high != 0) atomicAdd(&halves[1], high);
}

/// Finds the entry of shared.mass and shared.count with which the goal is reached. `above`: candidates before entry 0.
__device__ inline Crossing find_crossing(Selection& shared, int entries, const Measure& above, const Goal& goal) {
  constexpr int kThreadEntries = kBins / kSampleThreads;
  const int first = static_cast<int>(threadIdx.x) * kThreadEntries;
  const int last = min(first + kThreadEntries, entries);
  __syncthreads();
  Measure sum;
  for (int i = first; i < last; ++i) sum = sum + Measure{shared.mass[i], shared.count[i]};
  Measure through = sum;
  for (int offset = 1; offset < 32; offset *= 2) {
    const Measure other{__shfl_up_sync(~0u, through.mass, offset), __shfl_up_sync(~0u, through.count, offset)};
    if (sample_lane() >= offset) through = through + other;
  }
  if (sample_lane() == 31) shared.of_warp[sample_warp()] = through;
  if (threadIdx.x == 0) shared.crossing = {entries - 1, above, above};
  __syncthreads();
  Measure before = above + Measure{through.mass - sum.mass, through.count - sum.count};
  for (int warp = 0; warp < sample_warp(); ++warp) before = before + shared.of_warp[warp];
  for (int i = first; i < last; ++i) {
    const Measure next = before + Measure{shared.mass[i], shared.count[i]};
    if (!goal.is_reached(before) && goal.is_reached(next)) shared.crossing = {i, before, next};
    before = next;
  }
  __syncthreads();
  return shared.crossing;
}

/// Puts the keys of a range into the list, in no order, and returns how many there are. More than kListKeys do not fit.
__device__ inline int list_keys(Selection& shared, const KeySource& source, const KeyRange& range) {
  __syncthreads();
  if (threadIdx.x == 0) shared.listed = 0;
  __syncthreads();
  source.for_each_key(range, [&](Key key) {
    const unsigned at = atomicAdd(&shared.listed, 1u);
    if (at < kListKeys) shared.list[at] = key;
  });
  __syncthreads();
  return static_cast<int>(shared.listed);
}

/// Puts the first `count` keys of the list into descending order. A bitonic sorting network.
__device__ inline void sort_list(Selection& shared, int count) {
  int size = 64;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kSampleThreads) shared.list[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kSampleThreads) {
        const int i = 2 * pair - (pair & (distance - 1));
        const Key a = shared.list[i];
        const Key b = shared.list[i + distance];
        if ((a < b) == ((i & run) == 0)) {
          shared.list[i] = b;
          shared.list[i + distance] = a;
        }
      }
      // Over distances up to 32 a warp works on 64 neighbours of its own.
      const int next_distance = distance > 1 ? distance / 2 : run;
      if (max(distance, next_distance) > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

/// Narrows a range in which a goal is reached, by a factor of kBins at least. `above`: candidates larger than the
/// range.
template <class MassOf>
__device__ void narrow(Selection& shared, const KeySource& source, KeyRange& range, Measure& above, const Goal& goal,
                       const MassOf& mass_of) {
  const int shift = max(0, 64 - __clzll(static_cast<long long>(range.highest - range.lowest)) - kBinBits);
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
    shared.mass[i] = 0;
    shared.count[i] = 0;
  }
  __syncthreads();
  source.for_each_key(range, [&](Key key) {
    const int bin = static_cast<int>((range.highest - key) >> shift);
    add_shared(&shared.mass[bin], mass_of(key));
    atomicAdd(&shared.count[bin], 1u);
  });
  const Crossing crossing = find_crossing(shared, kBins, above, goal);
  above = crossing.before;
  range.highest -= min(static_cast<Key>(crossing.index) << shift, range.highest - range.lowest);
  range.lowest = range.highest - min((Key{1} << shift) - 1, range.highest - range.lowest);
}

/// Lists in descending order a part of the range that fits into the list and in which the goal is reached; returns its
/// size. `above` takes in the candidates that are larger.
template <class MassOf>
__device__ int list_around(Selection& shared, const KeySource& source, KeyRange range, Measure& above, const Goal& goal,
                           const MassOf& mass_of) {
  int count = list_keys(shared, source, range);
  while (count > kListKeys) {
    narrow(shared, source, range, above, goal, mass_of);
    count = list_keys(shared, source, range);
  }
  sort_list(shared, count);
  return count;
}

/// Lists the `count` largest keys of the row in descending order; count is from 1 to vocab and kListKeys.
__device__ inline void list_largest(Selection& shared, const KeySource& source, int count) {
  const int groups = source.view.groups();
  KeyRange range;
  __syncthreads();
  if (count <= groups && groups <= kListKeys) {
    // Each of `count` groups has one key at least that is not below the count-th of the groups' largest.
    for (int i = static_cast<int>(threadIdx.x); i < groups; i += kSampleThreads)
      shared.list[i] = __ldcg(source.group_largest + i);
    sort_list(shared, groups);
    range.lowest = shared.list[count - 1];
  }
  Measure above;
  list_around(shared, source, range, above, {false, static_cast<std::uint64_t>(count)},
              [](Key) { return std::uint64_t{0}; });
  if (above.count > 0) {
    range.lowest = shared.list[count - 1 - static_cast<int>(above.count)];
    list_keys(shared, source, range);
    sort_list(shared, count);
  }
}

}  // namespace gemma
