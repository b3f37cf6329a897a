// The whole decode step of Gemma 2 in one persistent kernel, from tokens to logits.
//
// Decoding reads every weight once for each step, so it can only be as fast as memory is read. One block runs on each
// multiprocessor. Its producer warp streams the block's share of all weights, layer after layer, and of the keys and
// values of past positions through a ring of stages in shared memory (stream.cuh); eight consumer warps multiply.
// Between the steps of a layer the blocks meet at a grid barrier: five a layer. The stream does not stop at barriers.
//
// Arithmetic is the same for one row and for many. A matrix product sums, for each row and output, over pieces of 512
// columns in ascending order; within a piece the tensor cores run over 16 columns at a time (multiply_piece). Weights
// are the 8-column operand, tokens the rows of the other one: eight, and in its other eight rows what rounding the
// tokens' activations to bf16 left over, so that products are as good as with float32 activations at no cost. Attention
// goes over blocks of 64 keys aligned to absolute positions, 8 keys a warp; blocks are combined in ascending order in
// groups of 16 by whichever thread block finishes last, and then the groups.
//
// Bytes of a step: all weights once, and the keys and values that the rows' queries see. With one row an H100 reads
// them at 68% (2B, context 512), 65% (2B, 8000), 83% (9B, 512) and 79% (9B, 8000) of 3.09 TB/s: see NOTES.md.

#include <algorithm>
#include <string>

#include "cuda_error.h"
#include "decode.cuh"
#include "device/attention_mask.h"
#include "device/device.h"
#include "gemma/error.h"
#include "stream.cuh"

namespace gemma {
namespace {

constexpr int kBlockKeys = kPagePositions;
constexpr int kKeysInPart = 8;  // keys of a block that one warp works on
constexpr int kPartsInBlock = kBlockKeys / kKeysInPart;
constexpr int kHeadsAtOnce = 2;  // query heads of a group that share a pass over the keys
constexpr int kMaxHeadDim = 256;
constexpr int kScratchBytes = 32 * 1024;  // partial sums of products, or of attention

static_assert(kPartsInBlock == kConsumerWarps);
static_assert(kConsumerWarps * kHeadsAtOnce * (kMaxHeadDim + 2) * 4 <= kScratchBytes);

/// Where an element of a product's input lies so that a lane finds what it feeds to the tensor cores for 32 columns in
/// one run of 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16, ... of the 32 for lane t of 4.
__device__ int operand_order(int column) {
  return (column & ~31) | (((column >> 1) & 3) << 3) | (((column >> 3) & 3) << 1) | (column & 1);
}

/// Writes two neighbouring elements of a product's input, and what rounding them to bf16 leaves over `left_over`
/// elements on.
__device__ void store_split(__nv_bfloat16* to, std::size_t left_over, float first, float second) {
  const std::uint32_t rounded = pack_bf16(first, second);
  *reinterpret_cast<std::uint32_t*>(to) = rounded;
  *reinterpret_cast<std::uint32_t*>(to + left_over) = pack_bf16(first - low_half(rounded), second - high_half(rounded));
}

__device__ void store_split(__nv_bfloat16* to, std::size_t left_over, float value) {
  const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
  *to = rounded;
  to[left_over] = __float2bfloat16_rn(value - __bfloat162float(rounded));
}

/// Distance of rows of a product's input in shared memory, such that two rows fall into different halves of the banks.
__host__ __device__ int operand_pitch(int columns) { return columns + ((columns * 2) % 128 == 0 ? 32 : 0); }

/// What a thread block has in shared memory.
struct Shared {
  Stream stream;
  __nv_bfloat16* operand;  // [2, rows, operand_pitch(hidden)]: the normalised residual, and what rounding left over
  int operand_rows;
  float* scratch;  // kScratchBytes
  float* sums;     // [kConsumerWarps]
  int* is_last;
  int* token;  // [kDecodeRows], and so are the next two: read from the model once
  int* position;
  int* ring;
};

/// Tiles of 8 outputs are dealt out to the blocks of the grid in turn, going on from one product to the next, so that
/// over a layer all blocks stream nearly the same number of bytes.
class Dealer {
 public:
  /// This block's first tile of the next product, which has `tiles` tiles; the others follow in steps of the grid.
  __device__ int deal(int tiles) {
    const int grid = static_cast<int>(gridDim.x);
    const int first = (static_cast<int>(blockIdx.x) - dealt_ + grid) % grid;
    dealt_ = (dealt_ + tiles) % grid;
    return first;
  }

 private:
  int dealt_ = 0;
};

__device__ int pieces_in_tile(int columns) { return (columns + kPieceColumns - 1) / kPieceColumns; }

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

__device__ KeyRange visible_keys(const DecodeModel& model, const DecodeLayer& layer, int position) {
  const int window = layer.is_local ? model.window : kNoWindow;
  return {position < window ? 0 : position - window + 1, position};
}

/// The first key of a block (its first value with `is_value`).
__device__ __nv_bfloat16* block_in_cache(const DecodeModel& model, const Shared& shared, const DecodeLayer& layer,
                                         int row, int kv_head, int block, bool is_value) {
  const std::size_t head_in_pair = static_cast<std::size_t>(is_value ? model.kv_heads : 0) + kv_head;
  if (layer.is_local) {
    const std::size_t ring = static_cast<std::size_t>(shared.ring[row]) * model.local_layers + layer.index_in_kind;
    const std::size_t slot = static_cast<std::size_t>(block) * kBlockKeys % model.ring_slots;
    return model.rings + ((ring * 2 * model.kv_heads + head_in_pair) * model.ring_slots + slot) * model.head_dim;
  }
  const int page_number = model.page_table[row * model.max_pages + block];
  const std::size_t page = static_cast<std::size_t>(page_number) * model.global_layers + layer.index_in_kind;
  return model.pages + (page * 2 * model.kv_heads + head_in_pair) * kBlockKeys * model.head_dim;
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

/// Attention's work: for each row and KV head the blocks of keys that the row sees, one behind the other, of which each
/// block of the grid gets an equal share. Calls work(BlockRun) for the runs of this one.
template <class Work>
__device__ void for_each_run(const DecodeModel& model, const Shared& shared, const DecodeLayer& layer, int rows,
                             const Work& work) {
  int total = 0;
  for (int row = 0; row < rows; ++row)
    total += visible_keys(model, layer, shared.position[row]).blocks() * model.kv_heads;
  // Shares begin behind one another at the blocks of the grid that come last in the products, too.
  const long long share = static_cast<long long>(gridDim.x) - 1 - blockIdx.x;
  int item = static_cast<int>(total * share / gridDim.x);
  const int end = static_cast<int>(total * (share + 1) / gridDim.x);
  int before = 0;
  for (int row = 0; row < rows && item < end; ++row) {
    const KeyRange range = visible_keys(model, layer, shared.position[row]);
    const int blocks = range.blocks();
    while (item < min(end, before + blocks * model.kv_heads)) {
      const int index = (item - before) % blocks;
      const int until = min(blocks, (index / kBlocksInGroup + 1) * kBlocksInGroup);  // the end of the group
      const int count = min(until - index, end - item);
      work(BlockRun{row, (item - before) / blocks, range, range.first_block() + index, count});
      item += count;
    }
    before += blocks * model.kv_heads;
  }
}

// --- the producer: the same order of steps as the consumers', reduced to what they read ---

__device__ void stream_matrix(Producer& producer, Dealer& dealer, const StreamedMatrix& matrix) {
  for (int tile = dealer.deal(matrix.tiles()); tile < matrix.tiles(); tile += static_cast<int>(gridDim.x)) {
    for (int column = 0; column < matrix.columns; column += kPieceColumns) producer.copy_weights(matrix, tile, column);
  }
}

__device__ void stream_keys_and_values(const DecodeModel& model, const Shared& shared, const DecodeLayer& layer,
                                       int rows, Producer& producer) {
  const int part_elements = kKeysInPart * model.head_dim;
  for_each_run(model, shared, layer, rows, [&](const BlockRun& run) {
    for (int block = run.first; block < run.first + run.count; ++block) {
      const __nv_bfloat16* keys = block_in_cache(model, shared, layer, run.row, run.kv_head, block, false);
      const __nv_bfloat16* values = block_in_cache(model, shared, layer, run.row, run.kv_head, block, true);
      const int first = run.range.first_part(block);
      for (int part = first; part < first + run.range.parts(block); ++part) {
        producer.copy_pair(keys + part * part_elements, values + part * part_elements, part_elements);
      }
    }
  });
}

__device__ void produce(const DecodeModel& model, const Shared& shared, int rows) {
  Producer producer(shared.stream);
  Dealer dealer;
  for (int i = 0; i < model.layers; ++i) {
    const DecodeLayer& layer = model.layer[i];
    stream_matrix(producer, dealer, layer.qkv);
    stream_keys_and_values(model, shared, layer, rows, producer);
    stream_matrix(producer, dealer, layer.attention_out);
    stream_matrix(producer, dealer, layer.gate_up);
    stream_matrix(producer, dealer, layer.down);
  }
  stream_matrix(producer, dealer, model.head);
}

// --- the consumers ---

__device__ int warp_index() { return static_cast<int>(threadIdx.x / 32); }
__device__ int lane_index() { return static_cast<int>(threadIdx.x % 32); }

/// Where the blocks of the grid wait for each other.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(unsigned* arrivals) : arrivals_(arrivals) {}

  __device__ void wait() {
    expected_ += gridDim.x;
    consumer_barrier();
    if (threadIdx.x == 0) {
      __threadfence();
      add_release(arrivals_, 1);
      while (load_acquire(arrivals_) < expected_) {
      }
    }
    consumer_barrier();
  }

 private:
  unsigned* arrivals_;
  unsigned expected_ = 0;
};

/// The next four elements of a row of the residual stream: what was there, and what the last product adds to it after
/// its own norm. Rounded the same way wherever it is computed.
struct ResidualRow {
  const float* residual;           // [hidden]; nullptr in the first layer, where `embedding` is the residual
  const __nv_bfloat16* embedding;  // [hidden]
  float embedding_scale;
  const float* added;       // [hidden]: what the last product gave
  const float* added_norm;  // [hidden]

  __device__ float4 added_at(int unit) const {
    if (residual == nullptr) return {};
    return __ldcg(reinterpret_cast<const float4*>(added) + unit);
  }

  __device__ float4 old_at(int unit) const {
    if (residual != nullptr) return __ldcg(reinterpret_cast<const float4*>(residual) + unit);
    const uint2 four = __ldg(reinterpret_cast<const uint2*>(embedding) + unit);
    return {low_half(four.x) * embedding_scale, high_half(four.x) * embedding_scale, low_half(four.y) * embedding_scale,
            high_half(four.y) * embedding_scale};
  }

  __device__ float4 sum(const float4& old, const float4& more, float added_scale, const float4& norm) const {
    if (residual == nullptr) return old;
    return {fmaf(__fmul_rn(more.x, added_scale), 1.0f + norm.x, old.x),
            fmaf(__fmul_rn(more.y, added_scale), 1.0f + norm.y, old.y),
            fmaf(__fmul_rn(more.z, added_scale), 1.0f + norm.z, old.z),
            fmaf(__fmul_rn(more.w, added_scale), 1.0f + norm.w, old.w)};
  }
};

__device__ float add_squares(float sum, const float4& v) {
  return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

/// Sums over a row, always in the same order: a row is dealt out in units of four elements to 8 segments of 32 lanes;
/// each lane adds up its units, each segment its lanes, then the segments in order. One row is shared by all warps, of
/// many each warp has one. @param lane_sum  the sum over units begin, begin + kConsumers, begin + 2 * kConsumers, ...
template <int kRows, class LaneSum>
__device__ float row_sum(float* shared_sums, const LaneSum& lane_sum) {
  float total = 0;
  if constexpr (kRows == 1) {
    const float sum = warp_sum(lane_sum(static_cast<int>(threadIdx.x)));
    consumer_barrier();  // the sums of the time before have been read
    if (lane_index() == 0) shared_sums[warp_index()] = sum;
    consumer_barrier();
    for (int segment = 0; segment < kConsumerWarps; ++segment) total += shared_sums[segment];
  } else {
    for (int segment = 0; segment < kConsumerWarps; ++segment) total += warp_sum(lane_sum(segment * 32 + lane_index()));
  }
  return total;
}

/// A thread's share of one row's norm weights, held in registers: asked for before the wait for what they are applied
/// to.
struct NormWeights {
  static constexpr int kHeld = 5;  // units; a row of up to kHeld * 4 * kConsumers elements
  float4 added[kHeld], next[kHeld];

  __device__ static bool can_hold(int hidden) { return hidden <= kHeld * 4 * kConsumers; }

  __device__ void fetch(const float* added_norm, const float* next_norm, int hidden) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int unit = static_cast<int>(threadIdx.x) + j * kConsumers;
      if (4 * unit >= hidden) continue;
      if (added_norm != nullptr) added[j] = __ldg(reinterpret_cast<const float4*>(added_norm) + unit);
      next[j] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    }
  }
};

/// residual + RMSNorm(added) -> the new residual (written by block 0 alone) -> RMSNorm -> the next product's operand in
/// shared memory. One row is worked on by all consumers, of many rows each by one warp; both compute the same.
/// @param held  for one row, if it can hold one
template <int kRows>
__device__ void normalize_row(const Shared& shared, const ResidualRow& row, const float* norm, const NormWeights& held,
                              int row_index, int hidden, float eps, float* residual_out) {
  const int units = hidden / 4;
  const float inverse_hidden = 1.0f / static_cast<float>(hidden);
  const int first = kRows == 1 ? static_cast<int>(threadIdx.x) : lane_index();

  // A thread's share of a single row fits into registers; then memory is asked once, for everything together.
  constexpr int kHeld = kRows == 1 ? NormWeights::kHeld : 1;
  const bool is_held = kRows == 1 && NormWeights::can_hold(hidden);
  float4 old[kHeld], added[kHeld];
  if (is_held) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (first + j * kConsumers < units) {
        old[j] = row.old_at(first + j * kConsumers);
        added[j] = row.added_at(first + j * kConsumers);
      }
    }
  }
  // Visits units begin, begin + kConsumers, ... of the row: visit(unit, old residual, added, norm of the added, next
  // norm).
  const auto each_unit = [&](int begin, const auto& visit) {
    if (is_held) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (begin + j * kConsumers < units)
          visit(begin + j * kConsumers, old[j], added[j], held.added[j], held.next[j]);
      }
    } else {
      for (int unit = begin; unit < units; unit += kConsumers) {
        float4 before = row.old_at(unit);
        const float4 added_norm =
            row.residual == nullptr ? float4{} : __ldg(reinterpret_cast<const float4*>(row.added_norm) + unit);
        visit(unit, before, row.added_at(unit), added_norm, __ldg(reinterpret_cast<const float4*>(norm) + unit));
      }
    }
  };

  float added_scale = 0;
  if (row.residual != nullptr) {
    const float squares = row_sum<kRows>(shared.sums, [&](int begin) {
      float sum = 0;
      each_unit(begin,
                [&](int, float4&, const float4& more, const float4&, const float4&) { sum = add_squares(sum, more); });
      return sum;
    });
    added_scale = rsqrtf(fmaf(squares, inverse_hidden, eps));
  }
  const float squares = row_sum<kRows>(shared.sums, [&](int begin) {
    float sum = 0;
    each_unit(begin, [&](int, float4& before, const float4& more, const float4& added_norm, const float4&) {
      before = row.sum(before, more, added_scale, added_norm);
      sum = add_squares(sum, before);
    });
    return sum;
  });
  const float scale = rsqrtf(fmaf(squares, inverse_hidden, eps));

  __nv_bfloat16* operand = shared.operand + row_index * operand_pitch(hidden);
  const std::size_t left_over = static_cast<std::size_t>(shared.operand_rows) * operand_pitch(hidden);
  for (int begin = first; begin < (kRows == 1 ? first + 1 : kConsumers); begin += 32) {
    each_unit(begin, [&](int unit, float4& before, const float4& more, const float4& added_norm, const float4& weight) {
      const float4 x = is_held ? before : row.sum(before, more, added_scale, added_norm);
      if (blockIdx.x == 0) __stcg(reinterpret_cast<float4*>(residual_out) + unit, x);
      store_split(operand + operand_order(4 * unit), left_over, __fmul_rn(__fmul_rn(x.x, scale), 1.0f + weight.x),
                  __fmul_rn(__fmul_rn(x.y, scale), 1.0f + weight.y));
      store_split(operand + operand_order(4 * unit + 2), left_over, __fmul_rn(__fmul_rn(x.z, scale), 1.0f + weight.z),
                  __fmul_rn(__fmul_rn(x.w, scale), 1.0f + weight.w));
    });
  }
}

/// A product's input: rows of bf16 in operand order, in shared or in global memory.
struct Operand {
  const __nv_bfloat16* rows;
  int pitch;
  std::size_t left_over;  // from a row to what rounding it left over
};

/// Adds up what the eight step classes of a piece gave, in the order of a butterfly over lanes.
__device__ float sum_classes(const float (&sums)[8]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/// A step's sums for one output: of both accumulators, for the rounded activations (value) and for what rounding left
/// over (rest).
__device__ float add_up(float even_value, float odd_value, float even_rest, float odd_rest) {
  return (even_value + odd_value) + (even_rest + odd_rest);
}

/// One warp: the product of a piece of weights and the operand's columns from `column` on. A piece has up to 16 steps
/// of 32 columns; steps c and c + 8 make class c, and a sum adds up the classes.
///
/// With one row, the rows of the tensor cores' operand are the classes: each lane holds the activations of its own
/// class's steps alone, and gives zeros in the others. With more rows, each class has accumulators of its own. Both
/// give the same bits.
/// @return the sums of row lane / 4 (of one row: in all lanes) and outputs 2 * (lane % 4) and 2 * (lane % 4) + 1 of the
/// tile.
template <int kRows, bool kIsGlobal>
__device__ float2 multiply_piece(const Stream& stream, int piece, const Operand& operand, int rows, int column,
                                 int columns) {
  constexpr int kSteps = kPieceColumns / 32;
  constexpr int kClasses = 8;
  const int lane = lane_index();
  const int group = lane / 4;
  const int steps = columns / 32;
  const auto read = [&](const __nv_bfloat16* row, int step) {
    const uint4* eight = reinterpret_cast<const uint4*>(row + column + 32 * step + lane % 4 * 8);
    return kIsGlobal ? __ldcg(eight) : *eight;
  };
  const auto load_weights = [&](const __nv_bfloat16* weights, int step, std::uint32_t(&b)[4]) {
    load_matrices(b, weights + swizzled(lane % 8, 32 * step + 8 * (lane / 8)));
  };

  if constexpr (kRows == 1) {
    // What other blocks have written is asked for before the wait for the weights.
    uint4 values[kSteps / kClasses], rests[kSteps / kClasses];
#pragma unroll
    for (int i = 0; i < kSteps / kClasses; ++i) {
      const int step = group + kClasses * i;
      values[i] = step < steps ? read(operand.rows, step) : make_uint4(0, 0, 0, 0);
      rests[i] = step < steps ? read(operand.rows + operand.left_over, step) : make_uint4(0, 0, 0, 0);
    }
    stream.wait_until_full(piece);
    const __nv_bfloat16* weights = stream.stage(piece);
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step >= steps) continue;
      std::uint32_t b[4];
      load_weights(weights, step, b);
      const bool is_own = group == step % kClasses;
      const uint4 value = is_own ? values[step / kClasses] : make_uint4(0, 0, 0, 0);
      const uint4 rest = is_own ? rests[step / kClasses] : make_uint4(0, 0, 0, 0);
      multiply_accumulate(even, value.x, rest.x, value.y, rest.y, b[0], b[1]);
      multiply_accumulate(odd, value.z, rest.z, value.w, rest.w, b[2], b[3]);
    }
    stream.release(piece);
    float2 sums = {add_up(even[0], odd[0], even[2], odd[2]), add_up(even[1], odd[1], even[3], odd[3])};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      sums.x += __shfl_xor_sync(~0u, sums.x, offset);
      sums.y += __shfl_xor_sync(~0u, sums.y, offset);
    }
    return sums;
  } else {
    const bool has_row = group < rows;
    const __nv_bfloat16* row = operand.rows + group * operand.pitch;
    stream.wait_until_full(piece);
    const __nv_bfloat16* weights = stream.stage(piece);
    float first[kClasses], second[kClasses];
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
      for (int step = c; step < kSteps; step += kClasses) {
        if (step >= steps) continue;
        std::uint32_t b[4];
        load_weights(weights, step, b);
        const uint4 value = has_row ? read(row, step) : make_uint4(0, 0, 0, 0);
        const uint4 rest = has_row ? read(row + operand.left_over, step) : make_uint4(0, 0, 0, 0);
        multiply_accumulate(even, value.x, rest.x, value.y, rest.y, b[0], b[1]);
        multiply_accumulate(odd, value.z, rest.z, value.w, rest.w, b[2], b[3]);
      }
      first[c] = add_up(even[0], odd[0], even[2], odd[2]);
      second[c] = add_up(even[1], odd[1], even[3], odd[3]);
    }
    stream.release(piece);
    return {sum_classes(first), sum_classes(second)};
  }
}

/// One product: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls epilogue(row, output, pair
/// of values): outputs 2i and 2i + 1, or of gate_up row i of both.
template <int kRows, bool kIsGlobal, class Epilogue>
__device__ void multiply(const Shared& shared, const StreamedMatrix& matrix, const Operand& operand, int rows,
                         int& next_piece, Dealer& dealer, const Epilogue& epilogue) {
  const int grid = static_cast<int>(gridDim.x);
  const int lane = lane_index();
  const int pieces = pieces_in_tile(matrix.columns);
  constexpr int kValuesInPiece = kRows * kPieceRows;
  const int tiles_at_once = max(1, kScratchBytes / (4 * kValuesInPiece * pieces));
  const int first_tile = dealer.deal(matrix.tiles());

  for (int tile = first_tile; tile < matrix.tiles(); tile += tiles_at_once * grid) {
    const int tiles = min(tiles_at_once, (matrix.tiles() - tile + grid - 1) / grid);
    const int slots = tiles * pieces;
    // This warp's pieces: those whose number is its own modulo the number of warps.
    for (int slot = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps; slot < slots;
         slot += kConsumerWarps) {
      const int column = slot % pieces * kPieceColumns;
      const float2 sums = multiply_piece<kRows, kIsGlobal>(shared.stream, next_piece + slot, operand, rows, column,
                                                           min(kPieceColumns, matrix.columns - column));
      if (lane / 4 < kRows) {
        *reinterpret_cast<float2*>(shared.scratch + slot * kValuesInPiece + (lane / 4) * kPieceRows + 2 * (lane % 4)) =
            sums;
      }
    }
    next_piece += slots;
    consumer_barrier();
    constexpr int kPairsInRow = kPieceRows / 2;
    constexpr int kPairs = kRows * kPairsInRow;
    for (int i = static_cast<int>(threadIdx.x); i < tiles * kPairs; i += kConsumers) {
      const int row = i % kPairs / kPairsInRow;
      const int pair = i % kPairsInRow;
      const int first = matrix.is_gate_up ? pair : 2 * pair;
      const int second = matrix.is_gate_up ? pair + kPairsInRow : 2 * pair + 1;
      const float* partial = shared.scratch + i / kPairs * pieces * kValuesInPiece + row * kPieceRows;
      float2 sum = {0, 0};
#pragma unroll 4
      for (int piece = 0; piece < pieces; ++piece) {
        sum.x += partial[piece * kValuesInPiece + first];
        sum.y += partial[piece * kValuesInPiece + second];
      }
      const int output = (tile + i / kPairs * grid) * matrix.rows_in_tile() + first;
      if (row < rows && output < matrix.outputs) epilogue(row, output, sum);
    }
    consumer_barrier();
  }
}

__device__ float soft_cap(float value, float cap) { return cap > 0 ? cap * tanhf(value / cap) : value; }

__device__ float gelu(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

// --- attention ---

/// Rotary embedding of element `index` of a head, rounded as kernels/rope.cu does it.
/// @param rope  the position's cosines and sines
__device__ float rotated(const float* head, int index, int head_dim, const float2* rope) {
  const int half = head_dim / 2;
  const float2 turn = __ldg(rope + index % half);
  const float x = __ldcg(head + index);
  const float y = __ldcg(head + (index < half ? index + half : index - half));
  const float across = __fmul_rn(y, turn.y);
  return fmaf(x, turn.x, index < half ? -across : across);
}

/// Merges softmax sums over separate keys, in the order given: out = sum exp(m_i - m) o_i, likewise the sums.
struct Softmax {
  float largest, sum;
};

/// What the warps of a block share while they attend to one block of keys; in the scratch memory.
struct AttentionScratch {
  float query[kHeadsAtOnce][kMaxHeadDim];  // rotated and scaled
  float new_key[kMaxHeadDim];              // the row's own, rounded as the cache has it
  float new_value[kMaxHeadDim];
  float2 sums[kConsumerWarps][kHeadsAtOnce];
  float out[kConsumerWarps][kHeadsAtOnce][kMaxHeadDim];
};
static_assert(sizeof(AttentionScratch) <= kScratchBytes);

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
__device__ float sum_over_lanes(float (&values)[16]) {
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

template <int kLaneDims>
__device__ void load_dims(const float* from, float (&out)[kLaneDims]) {
#pragma unroll
  for (int i = 0; i < kLaneDims; i += 2)
    *reinterpret_cast<float2*>(out + i) = *reinterpret_cast<const float2*>(from + i);
}

/// One warp: attention of up to two heads over the 8 keys of a part, not normalised.
template <int kLaneDims>  // elements of a head that a lane has: head_dim / 32, rounded up to 2, 4 or 8
__device__ void attend_part(const DecodeModel& model, const Shared& shared, AttentionScratch& scratch, int piece,
                            const KeyRange& range, int first_key, int heads, int part) {
  static_assert(kHeadsAtOnce * kKeysInPart == 16);
  const int head_dim = model.head_dim;
  const int lane = lane_index();
  const int first_dim = lane * kLaneDims;
  const bool has_dims = first_dim < head_dim;
  const int newest = range.last - first_key;  // index of the row's own key, if it is in this part

  float query[kHeadsAtOnce][kLaneDims] = {};
  if (has_dims) {
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) load_dims(scratch.query[h] + first_dim, query[h]);
  }
  shared.stream.wait_until_full(piece);
  const __nv_bfloat16* keys = shared.stream.stage(piece) + first_dim;
  const __nv_bfloat16* values = keys + kKeysInPart * head_dim;

  float scores[16];
#pragma unroll
  for (int k = 0; k < kKeysInPart; ++k) {
    float key[kLaneDims] = {};
    if (has_dims) load_dims(keys + k * head_dim, key);
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
  const float sum = sum_over_lanes(scores);
  const float score = is_seen ? soft_cap(sum, model.attention_softcap) : kMaskedScore;
  float largest = score;
#pragma unroll
  for (int offset = 2; offset < 16; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  const float weight = is_seen ? expf(score - largest) : 0.0f;
  float weights = weight;
#pragma unroll
  for (int offset = 2; offset < 16; offset *= 2) weights += __shfl_xor_sync(~0u, weights, offset);

  float out[kHeadsAtOnce][kLaneDims] = {};
#pragma unroll
  for (int k = 0; k < kKeysInPart; ++k) {
    const bool is_key_seen = first_key + k >= range.first && first_key + k <= range.last;
    float head_weight[kHeadsAtOnce];
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) head_weight[h] = __shfl_sync(~0u, weight, 16 * h + 2 * k);
    // A slot that the row does not see may hold anything, not-a-number included.
    float value[kLaneDims] = {};
    if (has_dims && is_key_seen) load_dims(values + k * head_dim, value);
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
/// its key and value, which go into the cache, too. What the product has left is read once, by all threads together.
__device__ void prepare_attention(const DecodeModel& model, const Shared& shared, const DecodeLayer& layer,
                                  AttentionScratch& scratch, const BlockRun& run, int first_head, int heads) {
  const int head_dim = model.head_dim;
  const int position = run.range.last;
  const int own_block = position / kBlockKeys;
  const bool has_own = own_block < run.first + run.count;
  const float* qkv = model.qkv + static_cast<std::size_t>(run.row) * (model.heads + 2 * model.kv_heads) * head_dim;
  const float2* rope = model.rope + static_cast<std::size_t>(position) * (head_dim / 2);
  for (int dim = static_cast<int>(threadIdx.x); dim < head_dim; dim += kConsumers) {
#pragma unroll
    for (int h = 0; h < kHeadsAtOnce; ++h) {
      scratch.query[h][dim] =
          h < heads ? rotated(qkv + (first_head + h) * head_dim, dim, head_dim, rope) * model.query_scale : 0.0f;
    }
    if (!has_own) continue;
    const __nv_bfloat16 key =
        __float2bfloat16_rn(rotated(qkv + (model.heads + run.kv_head) * head_dim, dim, head_dim, rope));
    const __nv_bfloat16 value =
        __float2bfloat16_rn(__ldcg(qkv + (model.heads + model.kv_heads + run.kv_head) * head_dim + dim));
    scratch.new_key[dim] = __bfloat162float(key);
    scratch.new_value[dim] = __bfloat162float(value);
    const std::size_t offset = static_cast<std::size_t>(position % kBlockKeys) * head_dim + dim;
    block_in_cache(model, shared, layer, run.row, run.kv_head, own_block, false)[offset] = key;
    block_in_cache(model, shared, layer, run.row, run.kv_head, own_block, true)[offset] = value;
  }
}

/// Combines `count` partial results over neighbouring keys, in order. Thread i of the consumers works on elements i,
/// i + kConsumers, ... of `heads` heads. Calls done(head, dim, value, softmax) for each.
template <class PartialOut, class PartialSums, class Done>
__device__ void combine(int count, int heads, int head_dim, const PartialOut& partial_out,
                        const PartialSums& partial_sums, const Done& done) {
  constexpr int kAtOnce = 8;  // asked for together
  for (int i = static_cast<int>(threadIdx.x); i < heads * head_dim; i += kConsumers) {
    const int head = i / head_dim;
    const int dim = i % head_dim;
    Softmax softmax{kMaskedScore, 0};
    float value = 0;
    for (int first = 0; first < count; first += kAtOnce) {
      float2 sums[kAtOnce];
      float outs[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const bool is_there = first + j < count;
        sums[j] = is_there ? partial_sums(head, first + j) : make_float2(kMaskedScore, 0);
        outs[j] = is_there ? partial_out(head, first + j, dim) : 0.0f;
      }
      float largest = softmax.largest;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) largest = fmaxf(largest, sums[j].x);
      const float before = expf(softmax.largest - largest);
      softmax = {largest, softmax.sum * before};
      value *= before;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float weight = expf(sums[j].x - largest);
        softmax.sum = fmaf(weight, sums[j].y, softmax.sum);
        value = fmaf(weight, outs[j], value);
      }
    }
    done(head, dim, value, softmax);
  }
}

/// Reports that `done` parts of some work of `all` are finished. @return whether they were the last: what the other
/// thread blocks wrote before they reported can then be read.
__device__ bool report_done(const Shared& shared, unsigned* arrivals, int done, int all) {
  consumer_barrier();
  if (threadIdx.x == 0) {
    __threadfence();
    *shared.is_last =
        fetch_add_acquire_release(arrivals, static_cast<unsigned>(done)) + done == static_cast<unsigned>(all);
    if (*shared.is_last) *arrivals = 0;  // for the next layer
    __threadfence();
  }
  consumer_barrier();
  return *shared.is_last != 0;
}

/// After a run's partial results are written: combines what is complete with it, its group and then all groups.
__device__ void combine_blocks(const DecodeModel& model, const Shared& shared, const BlockRun& run) {
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  const int first_head = run.row * model.heads + run.kv_head * group_heads;
  const int groups_wide = (model.max_blocks + kBlocksInGroup - 1) / kBlocksInGroup;
  const int group = run.group();
  const int groups = run.groups();
  unsigned* arrivals =
      model.block_arrivals + static_cast<std::size_t>(run.row * model.kv_heads + run.kv_head) * (groups_wide + 1);

  const auto finish = [&](int head, int dim, float value, const Softmax& softmax) {
    const int element = (run.kv_head * group_heads + head) * head_dim + dim;
    const std::size_t width = static_cast<std::size_t>(model.heads) * head_dim;
    store_split(model.attended + run.row * width + operand_order(element), kDecodeRows * width, value / softmax.sum);
  };
  if (!report_done(shared, arrivals + group, run.count, run.blocks_in_group())) return;
  const auto block_at = [&](int head, int part) {
    return static_cast<std::size_t>(first_head + head) * model.max_blocks + group * kBlocksInGroup + part;
  };
  const auto block_out = [&](int head, int part, int dim) {
    return __ldcg(model.partials + block_at(head, part) * head_dim + dim);
  };
  const auto block_sums = [&](int head, int part) { return __ldcg(model.partial_sums + block_at(head, part)); };
  if (groups == 1) {
    combine(run.blocks_in_group(), group_heads, head_dim, block_out, block_sums, finish);
    return;
  }
  const auto group_at = [&](int head, int part) {
    return static_cast<std::size_t>(first_head + head) * groups_wide + part;
  };
  combine(run.blocks_in_group(), group_heads, head_dim, block_out, block_sums,
          [&](int head, int dim, float value, const Softmax& softmax) {
            __stcg(model.group_partials + group_at(head, group) * head_dim + dim, value);
            if (dim == 0) __stcg(model.group_sums + group_at(head, group), make_float2(softmax.largest, softmax.sum));
          });
  if (!report_done(shared, arrivals + groups_wide, 1, groups)) return;
  combine(
      groups, group_heads, head_dim,
      [&](int head, int part, int dim) { return __ldcg(model.group_partials + group_at(head, part) * head_dim + dim); },
      [&](int head, int part) { return __ldcg(model.group_sums + group_at(head, part)); }, finish);
}

template <int kLaneDims>
__device__ void attend(const DecodeModel& model, const DecodeLayer& layer, const Shared& shared, int rows,
                       int& next_piece) {
  const int head_dim = model.head_dim;
  const int group_heads = model.heads / model.kv_heads;
  AttentionScratch& scratch = *reinterpret_cast<AttentionScratch*>(shared.scratch);

  for_each_run(model, shared, layer, rows, [&](const BlockRun& run) {
    for (int block = run.first; block < run.first + run.count; ++block) {
      const int parts = run.range.parts(block);
      const int part = (warp_index() - next_piece % kConsumerWarps + kConsumerWarps) % kConsumerWarps;
      const int first_key = block * kBlockKeys + (run.range.first_part(block) + part) * kKeysInPart;
      for (int first = 0; first < group_heads; first += kHeadsAtOnce) {
        const int heads = min(kHeadsAtOnce, group_heads - first);
        const int first_head = run.kv_head * group_heads + first;
        // With no more heads than are worked on at once, the queries serve the whole run.
        if (block == run.first || group_heads > kHeadsAtOnce)
          prepare_attention(model, shared, layer, scratch, run, first_head, heads);
        consumer_barrier();
        if (part < parts) {
          attend_part<kLaneDims>(model, shared, scratch, next_piece + part, run.range, first_key, heads, part);
          if (first + kHeadsAtOnce >= group_heads) shared.stream.release(next_piece + part);
        }
        consumer_barrier();
        combine(
            parts, heads, head_dim, [&](int head, int p, int dim) { return scratch.out[p][head][dim]; },
            [&](int head, int p) { return scratch.sums[p][head]; },
            [&](int head, int dim, float value, const Softmax& softmax) {
              const std::size_t at =
                  static_cast<std::size_t>(run.row * model.heads + first_head + head) * model.max_blocks + block -
                  run.range.first_block();
              __stcg(model.partials + at * head_dim + dim, value);
              if (dim == 0) __stcg(model.partial_sums + at, make_float2(softmax.largest, softmax.sum));
            });
      }
      next_piece += parts;
    }
    combine_blocks(model, shared, run);
    consumer_barrier();  // before the next run's queries take the place of this one's
  });
}

// --- the step ---

template <int kRows>
__device__ void consume(const DecodeModel& model, const Shared& shared, int rows) {
  const int hidden = model.hidden;
  const int query_size = model.heads * model.head_dim;
  const int qkv_size = query_size + 2 * model.kv_heads * model.head_dim;
  GridBarrier grid(model.grid_arrivals);
  Dealer dealer;
  int next_piece = 0;
  const Operand normalized{shared.operand, operand_pitch(hidden),
                           static_cast<std::size_t>(shared.operand_rows) * operand_pitch(hidden)};
  const Operand attended{model.attended, query_size, static_cast<std::size_t>(kDecodeRows) * query_size};
  const Operand activated{model.activated, model.intermediate,
                          static_cast<std::size_t>(kDecodeRows) * model.intermediate};
  float* residual[2] = {model.residual, model.residual + kDecodeRows * static_cast<std::size_t>(hidden)};

  // The residual of the last step plus what it added, after its norm; and the norm that comes next.
  NormWeights held;
  const float* added_norm = nullptr;
  const float* next_norm = nullptr;
  const auto fetch_norms = [&](const float* added, const float* next) {
    added_norm = added;
    next_norm = next;
    if (kRows == 1 && NormWeights::can_hold(hidden)) held.fetch(added, next, hidden);
  };
  const auto normalize = [&](bool is_first) {
    for (int row = kRows == 1 ? 0 : warp_index(); row < rows; row += kConsumerWarps) {
      const std::size_t offset = static_cast<std::size_t>(row) * hidden;
      const ResidualRow source{is_first ? nullptr : residual[0] + offset,
                               model.embed + static_cast<std::size_t>(shared.token[row]) * hidden,
                               model.embedding_scale, model.projected + offset, added_norm};
      normalize_row<kRows>(shared, source, next_norm, held, row, hidden, model.norm_eps, residual[1] + offset);
    }
    float* const newest = residual[1];
    residual[1] = residual[0];
    residual[0] = newest;
    consumer_barrier();
  };
  const auto store_to = [](float* out, int width) {
    return [out, width](int row, int output, float2 values) {
      __stcg(reinterpret_cast<float2*>(out + static_cast<std::size_t>(row) * width + output), values);
    };
  };

  fetch_norms(nullptr, model.layer[0].attention_norm);
  for (int i = 0; i < model.layers; ++i) {
    const DecodeLayer& layer = model.layer[i];
    normalize(i == 0);
    multiply<kRows, false>(shared, layer.qkv, normalized, rows, next_piece, dealer, store_to(model.qkv, qkv_size));
    grid.wait();

    if (model.head_dim > 128) {
      attend<8>(model, layer, shared, rows, next_piece);
    } else if (model.head_dim > 64) {
      attend<4>(model, layer, shared, rows, next_piece);
    } else {
      attend<2>(model, layer, shared, rows, next_piece);
    }
    grid.wait();

    multiply<kRows, true>(shared, layer.attention_out, attended, rows, next_piece, dealer,
                          store_to(model.projected, hidden));
    fetch_norms(layer.attention_post_norm, layer.mlp_norm);
    grid.wait();

    normalize(false);
    multiply<kRows, false>(shared, layer.gate_up, normalized, rows, next_piece, dealer,
                           [&](int row, int output, float2 gate_up) {
                             const std::size_t width = static_cast<std::size_t>(model.intermediate);
                             store_split(model.activated + row * width + operand_order(output), kDecodeRows * width,
                                         gelu(gate_up.x) * gate_up.y);
                           });
    grid.wait();

    multiply<kRows, true>(shared, layer.down, activated, rows, next_piece, dealer, store_to(model.projected, hidden));
    fetch_norms(layer.mlp_post_norm, i + 1 < model.layers ? model.layer[i + 1].attention_norm : model.final_norm);
    grid.wait();
  }
  normalize(false);
  multiply<kRows, false>(shared, model.head, normalized, rows, next_piece, dealer,
                         [&](int row, int output, float2 logits) {
                           float* out = model.logits + row * model.logits_pitch + output;
                           out[0] = soft_cap(logits.x, model.final_softcap);
                           if (output + 1 < model.vocab) out[1] = soft_cap(logits.y, model.final_softcap);
                         });
}

constexpr int kMaxStages = 32;
constexpr int kSmallBytes =
    256 + 16 * kMaxStages;  // sums, flags, the rows' tokens, positions and rings; then the stages' barriers

template <int kRows>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeModel model, int max_rows, int stages) {
  extern __shared__ __align__(1024) char memory[];
  Shared shared;
  shared.stream.stage_memory = memory;
  shared.stream.stages = stages;
  char* rest = memory + static_cast<std::size_t>(stages) * kStageBytes;
  shared.scratch = reinterpret_cast<float*>(rest);
  rest += kScratchBytes;
  shared.sums = reinterpret_cast<float*>(rest);
  shared.is_last = reinterpret_cast<int*>(shared.sums + kConsumerWarps);
  shared.token = shared.is_last + 1;
  shared.position = shared.token + kDecodeRows;
  shared.ring = shared.position + kDecodeRows;
  shared.stream.full = reinterpret_cast<std::uint64_t*>(rest + kSmallBytes - 16 * kMaxStages);
  shared.stream.empty = shared.stream.full + kMaxStages;
  rest += kSmallBytes;
  shared.operand = reinterpret_cast<__nv_bfloat16*>(rest);
  shared.operand_rows = max_rows;

  const int rows = *model.row_count;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&shared.stream.full[i], producer_threads());
      barrier_init(&shared.stream.empty[i], 1);
    }
    fence_barrier_init();
  }
  if (threadIdx.x < static_cast<unsigned>(rows)) {
    shared.token[threadIdx.x] = model.token[threadIdx.x];
    shared.position[threadIdx.x] = model.position[threadIdx.x];
    shared.ring[threadIdx.x] = model.ring[threadIdx.x];
  }
  __syncthreads();

  if (threadIdx.x >= kConsumers) {
    give_up_registers<40>();
    if (threadIdx.x < kConsumers + producer_threads()) produce(model, shared, rows);
  } else {
    take_registers<232>();
    consume<kRows>(model, shared, rows);
  }
}

/// Shared memory of a block beside the stages.
int fixed_bytes(int hidden, int rows) { return 2 * rows * operand_pitch(hidden) * 2 + kScratchBytes + kSmallBytes; }

constexpr int kMinStages = 3;

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

template <int kRows>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  const int fixed = fixed_bytes(model.hidden, rows);
  const int stages = std::min(kMaxStages, (attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed) / kStageBytes);
  const int bytes = fixed + stages * kStageBytes;
  check_cuda(cudaFuncSetAttribute(decode_kernel<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(attribute(cudaDevAttrMultiProcessorCount)));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = stream;
  // All blocks must run at once: they wait for each other.
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, decode_kernel<kRows>, model, rows, stages));
}

}  // namespace

int decode_rows_at_once(int hidden) {
  const int memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  int rows = kDecodeRows;
  while (rows > 0 && fixed_bytes(hidden, rows) + kMinStages * kStageBytes > memory) --rows;
  if (rows == 0) {
    throw Error("this GPU's blocks have " + std::to_string(memory / 1024) +
                " KB of shared memory, too little for a hidden size of " + std::to_string(hidden));
  }
  return rows;
}

void launch_decode(const DecodeModel& model, int max_rows, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(model.grid_arrivals, 0, sizeof(unsigned), stream));
  if (max_rows == 1) {
    launch<1>(model, 1, stream);
  } else {
    launch<kDecodeRows>(model, max_rows, stream);
  }
}

}  // namespace gemma
