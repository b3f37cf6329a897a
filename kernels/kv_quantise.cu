// Keys and values in 8 bits, for prompts: a chunk's own are rounded before any row sees them, and what the cache has of
// earlier positions is expanded to bf16 for attention, a layer at a time.
//
// Bytes of rounding a chunk: 5 for each element of its keys and values (2 read, 2 + 1 written), and 4 for each scale.
// Bytes of expanding: 3 for each element that the chunk sees of the cache (1 read, 2 written, mostly to the L2 cache),
// and 4 for each scale. For a chunk of 2048 rows of 2B behind 6144 others that is 21 MB, and 25 MB for a local or 38 MB
// for a global layer, where the layer takes 0.7 ms on an H100.

#include <algorithm>

#include "device/attention_mask.h"
#include "kv_codes.cuh"
#include "kv_quantise.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;  // elements that a lane works on at once

/// A warp rounds one head's key or value.
__global__ void __launch_bounds__(kThreads) quantise_kernel(__nv_bfloat16* k, __nv_bfloat16* v, int heads, int head_dim,
                                                            const __grid_constant__ QuantisedRows out) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int item = static_cast<int>(blockIdx.x) * (kThreads / 32) + static_cast<int>(threadIdx.x / 32);
  if (item >= 2 * heads) return;
  const bool is_value = item >= heads;
  const int head = is_value ? item - heads : item;
  const int dim = static_cast<int>(threadIdx.x % 32) * kUnit;
  const bool has_dims = dim < head_dim;
  const std::size_t at = static_cast<std::size_t>(head) * head_dim + dim;
  auto* elements = reinterpret_cast<uint4*>((is_value ? v : k) + at);

  const uint4 read = has_dims ? *elements : uint4{};
  const std::uint32_t pairs[kUnit / 2] = {read.x, read.y, read.z, read.w};
  float x[kUnit];
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    x[i] = i % 2 == 0 ? low_half(pairs[i / 2]) : high_half(pairs[i / 2]);
    largest = max(largest, size_bits(x[i]));
  }
  const KvScale scale = kv_scale(largest);
  if (threadIdx.x % 32 == 0) (is_value ? out.v_scale : out.k_scale)[head] = scale.scale;
  if (!has_dims) return;
  int codes[kUnit];
  std::uint32_t rounded[kUnit / 2];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) codes[i] = kv_code(x[i], scale);
#pragma unroll
  for (int i = 0; i < kUnit; i += 2) {
    rounded[i / 2] = pack_bf16(__fmul_rn(scale.scale, static_cast<float>(codes[i])),
                               __fmul_rn(scale.scale, static_cast<float>(codes[i + 1])));
  }
  *elements = {rounded[0], rounded[1], rounded[2], rounded[3]};
  *reinterpret_cast<uint2*>((is_value ? out.v : out.k) + at) = {pack_codes(codes[0], codes[1], codes[2], codes[3]),
                                                                pack_codes(codes[4], codes[5], codes[6], codes[7])};
}

/// A thread block expands the keys, or the values, of one KV head at 64 positions: blockIdx.x counts the blocks of
/// positions, blockIdx.y the sequences, blockIdx.z the heads, first of keys and then of values.
__global__ void __launch_bounds__(kThreads)
    expand_kernel(const __grid_constant__ LayerCache cache, const __grid_constant__ LayerCache expanded, int window,
                  const PromptSequence* sequences) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = sequences[blockIdx.y];
  const int block = first_visible(sequence.position, window) / kBlockPositions + static_cast<int>(blockIdx.x);
  const int positions = min(sequence.position - block * kBlockPositions, kBlockPositions);
  if (positions <= 0) return;
  const bool is_value = static_cast<int>(blockIdx.z) >= cache.kv_heads;
  const int head = static_cast<int>(blockIdx.z) - (is_value ? cache.kv_heads : 0);
  const QuantisedBlock from = quantised_block_in_layer(cache, sequence, head, block, is_value);
  auto* to = reinterpret_cast<uint4*>(block_in_layer(expanded, sequence, head, block, is_value));
  const int units_of_head = cache.head_dim / kUnit;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < positions * units_of_head; i += kThreads) {
    const uint2 codes = reinterpret_cast<const uint2*>(from.codes)[i];
    const float scale = from.scales[i / units_of_head];
    std::uint32_t pairs[kUnit / 2];
#pragma unroll
    for (int j = 0; j < kUnit; j += 2) {
      const std::uint32_t four = j < 4 ? codes.x : codes.y;
      pairs[j / 2] = pack_bf16(__fmul_rn(scale, code_at(four, j % 4)), __fmul_rn(scale, code_at(four, j % 4 + 1)));
    }
    to[i] = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

}  // namespace

void launch_kv_quantise(__nv_bfloat16* k, __nv_bfloat16* v, int rows, int kv_heads, int head_dim,
                        const QuantisedRows& out, cudaStream_t stream) {
  if (rows == 0) return;
  const int heads = rows * kv_heads;
  constexpr int kWarps = kThreads / 32;
  const dim3 grid(static_cast<unsigned>((2 * heads + kWarps - 1) / kWarps));
  launch_early(quantise_kernel, grid, kThreads, 0, stream, k, v, heads, head_dim, out);
}

int most_blocks_before_chunk(int position, int window) {
  if (window == 1) return 0;
  const int all = (position + kBlockPositions - 1) / kBlockPositions;
  // The window - 1 positions may begin with the last one of a block.
  return window - 1 >= position ? all : std::min(all, (window - 1 + kBlockPositions - 2) / kBlockPositions + 1);
}

void launch_kv_expand(const LayerCache& cache, const LayerCache& expanded, int window, const PromptSequence* sequences,
                      int count, int max_blocks, cudaStream_t stream) {
  if (count == 0 || max_blocks <= 0) return;
  const dim3 grid(static_cast<unsigned>(max_blocks), static_cast<unsigned>(count),
                  static_cast<unsigned>(2 * cache.kv_heads));
  launch_early(expand_kernel, grid, kThreads, 0, stream, cache, expanded, window, sequences);
}

}  // namespace gemma
