// Attention of a prompt chunk on Hopper: out = softmax(mask(softcap(q k^T))) v, for each row and query head.
//
// A block works on 64 neighbouring rows of one sequence and two query heads that share their keys and values, a
// warpgroup for each head. It goes over the keys that the rows see in tiles of 64, aligned to absolute positions, in
// ascending order. A third warpgroup copies keys and values, two tiles of each ahead at the most; both products run on
// the tensor cores from shared memory, with the weights, rounded to bf16, in registers. While a tile's scores become
// weights, the tensor cores make the next tile's scores, and work for the other warpgroup. Tiles outside the window or
// after the last row are never touched, so a local layer costs rows x window.
//
// Soft-capped scores are at most cap: a weight is e^score, of at most e^64, without a maximum that would have to be
// found first and corrected later. Nothing overflows: a sum of 2^20 such weights is below 2^113.
//
// Where the chunk begins decides which rows share a block, and must not show in the results: the weight of a key that a
// row does not see is 0, which leaves its sum and output as they are, to the last bit.
//
// Work: 4 * head_dim operations for each query head, row and key that it sees. Bytes: queries and output once; keys and
// values once for every 64 rows and two query heads, mostly from the L2 cache.

#include "cuda_error.h"
#include "float_math.cuh"
#include "launch.cuh"
#include "prompt_tile.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"
#include "wgmma_attention.cuh"

namespace gemma {
namespace {

constexpr float kMaxCap = 64;
constexpr int kTile = kAttentionTile;
constexpr int kStages = 4;  // tiles of keys and, in turn, of values
constexpr int kHeads = 2;   // of a block
constexpr int kWarpgroup = 128;
constexpr int kThreads = kWarpgroup * (1 + kHeads);  // the producer first
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + kHeads * kConsumerRegisters <= (1 + kHeads) * 168, "what a block starts with");
constexpr int kAlignment = 1024;  // of panels; the barriers before them take less

template <int kHeadDim>
constexpr int kTileBytes = kTile* kHeadDim * 2;
template <int kHeadDim>
constexpr int kSharedBytes = (kHeads + kStages) * kTileBytes<kHeadDim> + 2 * kAlignment;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A warpgroup begins to copy the rows that `source` gives for 0 to 63 to panels; those that are not `wanted` become
/// zeros.
template <int kHeadDim, class Source, class Wanted>
__device__ void copy_tile(__nv_bfloat16* to, const Source& source, const Wanted& wanted, const void* any_address) {
  constexpr int kUnits = kHeadDim / 8;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int unit = thread % kUnits;
#pragma unroll 2
  for (int row = thread / kUnits; row < kTile; row += kWarpgroup / kUnits) {
    const bool is_wanted = wanted(row);
    copy_async_16_or_zero(to + in_panels(kTile, row, unit), is_wanted ? source(row) + unit * 8 : any_address,
                          is_wanted);
  }
}

/// Turns a thread's scores of a tile into weights, rounded to bf16.
/// @param query  position of the first of the thread's two rows; the other one is 8 further
/// @param sum    of the rounded weights, of each row
template <bool kHasLarge, bool kHasMask>
__device__ void soften(const SoftCap& cap, float (&score)[kTile / 2], int query, int first_key, int window,
                       float (&sum)[2]) {
#pragma unroll
  for (int i = 0; i < kTile / 2; i += 2) {
    const int row = i / 2 % 2;
    float two[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      two[j] = exp2_approx(kHasLarge ? cap(score[i + j]) : cap.small(score[i + j]));
      const int key = first_key + i / 4 * 8 + 2 * (static_cast<int>(threadIdx.x) % 4) + j;
      if (kHasMask && !is_visible(query + 8 * row, key, window)) two[j] = 0;
    }
    const std::uint32_t rounded = pack_bf16(two[0], two[1]);
    score[i] = low_half(rounded);
    score[i + 1] = high_half(rounded);
    sum[row] += score[i] + score[i + 1];
  }
}

/// Weights as the first operand of four products of 16 keys each.
__device__ void pack_weights(const float (&weight)[kTile / 2], std::uint32_t (&operand)[kTile / 16][4]) {
#pragma unroll
  for (int i = 0; i < kTile / 2; i += 2)
    operand[i / 8][i / 2 % 4] = __byte_perm(__float_as_uint(weight[i]), __float_as_uint(weight[i + 1]), 0x7632);
}

#endif

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) attention_kernel(const __grid_constant__ PromptAttention attention) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = attention.sequences[blockIdx.z];
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTile;  // the longest work first
  if (first_row >= sequence.rows) return;
  const int first_head = static_cast<int>(blockIdx.x) * kHeads;
  const int kv_head = first_head / (attention.heads / attention.cache.kv_heads);
  const int window = attention.window;
  const int row_count = min(kTile, sequence.rows - first_row);
  const AttentionRows rows{sequence.position + first_row, sequence.position + first_row + row_count - 1};
  const int first_tile = rows.first_key(window) / kTile;
  const int tiles = rows.last_query / kTile - first_tile + 1;

  constexpr int kElements = kTile * kHeadDim;  // of a tile
  char* const memory = dynamic_shared_memory();
  auto* full = reinterpret_cast<std::uint64_t*>(memory);  // [kStages]
  std::uint64_t* empty = full + kStages;                  // [kStages]
  const unsigned address = shared_address(memory);
  auto* queries = reinterpret_cast<__nv_bfloat16*>(
      memory + ((address + 2 * kAlignment - 1) / kAlignment * kAlignment - address));  // [kHeads] tiles
  __nv_bfloat16* stages = queries + kHeads * kElements;                                // [kStages] tiles
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], kWarpgroup);
      barrier_init(&empty[i], kHeads * kWarpgroup / 32);
    }
  }
  __syncthreads();

  // Tiles are copied in turns: keys, values, the next keys, ...
  const auto keys_of = [](int i) { return 2 * i; };
  const auto values_of = [](int i) { return 2 * i + 1; };
  const auto parity = [](int turn) { return static_cast<unsigned>(turn / kStages) & 1; };

  if (threadIdx.x < kWarpgroup) {
    give_up_registers<kProducerRegisters>();
    int handed_over = 0;
    const auto hand_over = [&](int end) {
      fence_for_async_reads();
      for (; handed_over < end; ++handed_over) barrier_arrive(&full[handed_over % kStages]);
    };
    for (int turn = 0; turn < 2 * tiles; ++turn) {
      const int stage = turn % kStages;
      if (!barrier_test(&empty[stage], parity(turn) ^ 1)) {
        copy_async_wait<0>();
        hand_over(turn);
        barrier_wait(&empty[stage], parity(turn) ^ 1);
      }
      // The slots of keys that no row sees may hold anything, and 0 * not-a-number is not 0: they become zeros.
      const int tile = first_tile + turn / 2;
      const int first_wanted = rows.first_key(window) - tile * kTile;
      const int last_wanted = rows.last_query - tile * kTile;
      const TileSource source(attention, sequence, kv_head, tile, turn % 2 != 0);
      copy_tile<kHeadDim>(
          stages + stage * kElements, [&](int key) { return source[key]; },
          [&](int key) { return key >= first_wanted && key <= last_wanted; }, attention.q);
      copy_async_commit();
      copy_async_wait<kStages / 2>();
      hand_over(turn + 1 - kStages / 2);
    }
    copy_async_wait<0>();
    hand_over(2 * tiles);
  } else {
    take_registers<kConsumerRegisters>();
    const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const std::size_t pitch = static_cast<std::size_t>(attention.heads) * kHeadDim;
    const std::size_t offset = (static_cast<std::size_t>(sequence.first_row) + first_row) * pitch +
                               static_cast<std::size_t>(first_head + warpgroup) * kHeadDim;
    queries += warpgroup * kElements;
    copy_tile<kHeadDim>(
        queries, [&](int row) { return attention.q + offset + row * pitch; }, [&](int row) { return row < row_count; },
        attention.q);
    copy_async_commit();
    copy_async_wait<0>();
    fence_for_async_reads();
    warpgroup_barrier(1 + warpgroup);

    constexpr int kPanelBytes = kTile * kPanelColumns * 2;
    const SoftCap cap(attention.softcap);
    const int query = rows.first_query + warp_row + lane / 4;
    float out[kHeadDim / 2] = {};
    float score[kTile / 2];
    std::uint32_t weights[kTile / 16][4];
    float sum[2] = {0, 0};

    const auto wait_for = [&](int turn) { barrier_wait(&full[turn % kStages], parity(turn)); };
    const auto release = [&](int turn) {
      if (lane == 0) barrier_arrive(&empty[turn % kStages]);
    };
    const auto begin_scores = [&](int i) {
      const std::uint64_t a = rows_operand(queries);
      const std::uint64_t b = rows_operand(stages + keys_of(i) % kStages * kElements);
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        const std::uint64_t further = operand_step(step / 4 * kPanelBytes + step % 4 * 32);
        multiply(score, a + further, b + further, step > 0);
      }
      wgmma_commit();
    };
    const auto begin_values = [&](int i) {
      const std::uint64_t b = columns_operand(stages + values_of(i) % kStages * kElements, kPanelBytes);
#pragma unroll
      for (int step = 0; step < kTile / 16; ++step)
        multiply(out, weights[step], b + operand_step(step * 16 * kPanelColumns * 2), true);
      wgmma_commit();
    };
    const auto soften_tile = [&](int i) {
      sums_are_ready(score);
      release(keys_of(i));
      float largest = 0;
#pragma unroll
      for (float one : score) largest = fmaxf(largest, fabsf(one));
      const bool has_large = __any_sync(~0u, largest > cap.cap);
      const int first_key = (first_tile + i) * kTile;
      if (has_large) {
        soften<true, true>(cap, score, query, first_key, window, sum);
      } else if (rows.see_all(first_key, window)) {
        soften<false, false>(cap, score, query, first_key, window, sum);
      } else {
        soften<false, true>(cap, score, query, first_key, window, sum);
      }
    };
    // The weights of a tile are multiplied by its values while those of the next one are made.
    wait_for(keys_of(0));
    wgmma_fence();
    begin_scores(0);
    wgmma_wait<0>();
    soften_tile(0);
    pack_weights(score, weights);
    for (int i = 0; i + 1 < tiles; ++i) {
      wait_for(keys_of(i + 1));
      wait_for(values_of(i));
      wgmma_fence();
      begin_scores(i + 1);
      begin_values(i);
      wgmma_wait<1>();
      soften_tile(i + 1);
      wgmma_wait<0>();
      sums_are_ready(score);  // else they could be packed while the products still read the old ones
      release(values_of(i));
      pack_weights(score, weights);
    }
    wait_for(values_of(tiles - 1));
    wgmma_fence();
    begin_values(tiles - 1);
    wgmma_wait<0>();
    sums_are_ready(out);

    // Through the queries' tile, to write whole rows.
    warpgroup_barrier(1 + warpgroup);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float all = sum[row];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      const float scale = 1.0f / all;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        __nv_bfloat16* to = queries + in_panels(kTile, warp_row + lane / 4 + 8 * row, j) + 2 * (lane % 4);
        *reinterpret_cast<std::uint32_t*>(to) =
            pack_bf16(out[4 * j + 2 * row] * scale, out[4 * j + 2 * row + 1] * scale);
      }
    }
    __syncwarp();
    constexpr int kUnits = kHeadDim / 8;
    for (int i = lane; i < 16 * kUnits; i += 32) {
      const int row = warp_row + i / kUnits;
      const int unit = i % kUnits;
      if (row < row_count) {
        *reinterpret_cast<uint4*>(attention.out + offset + row * pitch + unit * 8) =
            *reinterpret_cast<const uint4*>(queries + in_panels(kTile, row, unit));
      }
    }
  }
#endif
}

template <int kHeadDim>
void launch(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream) {
  const auto kernel = attention_kernel<kHeadDim>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kHeadDim>));
  const dim3 grid(static_cast<unsigned>(attention.heads / kHeads),
                  static_cast<unsigned>((max_rows + kTile - 1) / kTile), static_cast<unsigned>(count));
  launch_early(kernel, grid, kThreads, kSharedBytes<kHeadDim>, stream, attention);
}

}  // namespace

bool fits_wgmma_attention(const PromptAttention& attention) {
  const int head_dim = attention.cache.head_dim;
  return (head_dim == 64 || head_dim == 128 || head_dim == 256) &&
         attention.heads / attention.cache.kv_heads % kHeads == 0 && attention.softcap > 0 &&
         attention.softcap <= kMaxCap;
}

void launch_wgmma_attention(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream) {
  switch (attention.cache.head_dim) {
    case 64:
      return launch<64>(attention, count, max_rows, stream);
    case 128:
      return launch<128>(attention, count, max_rows, stream);
    default:
      return launch<256>(attention, count, max_rows, stream);
  }
}

}  // namespace gemma
