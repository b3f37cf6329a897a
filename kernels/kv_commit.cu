// A prompt chunk's keys and values into the cache.
//
// Bytes: twice those of the keys and values that are committed.

#include "kv_commit.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;       // elements of 16 bytes
constexpr int kCodeUnit = 16;  // codes of 16 bytes

/// A block copies one position: blockIdx.x counts the sequence's rows, blockIdx.y the sequences.
__global__ void __launch_bounds__(kThreads)
    kv_commit_kernel(const __nv_bfloat16* k, const __nv_bfloat16* v, const __grid_constant__ LayerCache cache,
                     const PromptSequence* sequences) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = sequences[blockIdx.y];
  const int row = static_cast<int>(blockIdx.x);
  if (row >= sequence.rows) return;
  if (cache.is_local && row < sequence.rows - cache.ring_slots) return;  // a newer row takes this slot
  const int position = sequence.position + row;
  const int units_of_head = cache.head_dim / kUnit;
  const int units = cache.kv_heads * units_of_head;
  const std::size_t from = static_cast<std::size_t>(sequence.first_row + row) * cache.kv_heads * cache.head_dim;

  for (int i = static_cast<int>(threadIdx.x); i < 2 * units; i += kThreads) {
    const bool is_value = i >= units;
    const int unit = is_value ? i - units : i;
    const uint4 data = reinterpret_cast<const uint4*>((is_value ? v : k) + from)[unit];
    __nv_bfloat16* block = block_in_layer(cache, sequence, unit / units_of_head, position / kBlockPositions, is_value);
    __nv_bfloat16* to = block + static_cast<std::size_t>(position % kBlockPositions) * cache.head_dim;
    reinterpret_cast<uint4*>(to)[unit % units_of_head] = data;
  }
}

/// The same with codes and scales.
__global__ void __launch_bounds__(kThreads)
    quantised_commit_kernel(const __grid_constant__ QuantisedRows rows, const __grid_constant__ LayerCache cache,
                            const PromptSequence* sequences) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = sequences[blockIdx.y];
  const int row = static_cast<int>(blockIdx.x);
  if (row >= sequence.rows) return;
  if (cache.is_local && row < sequence.rows - cache.ring_slots) return;  // a newer row takes this slot
  const int position = sequence.position + row;
  const int units_of_head = cache.head_dim / kCodeUnit;
  const int units = cache.kv_heads * units_of_head;
  const std::size_t from = static_cast<std::size_t>(sequence.first_row + row) * cache.kv_heads;

  for (int i = static_cast<int>(threadIdx.x); i < 2 * units; i += kThreads) {
    const bool is_value = i >= units;
    const int unit = is_value ? i - units : i;
    const int head = unit / units_of_head;
    const std::int8_t* codes = (is_value ? rows.v : rows.k) + from * cache.head_dim;
    const uint4 data = reinterpret_cast<const uint4*>(codes)[unit];
    const QuantisedBlock block = quantised_block_in_layer(cache, sequence, head, position / kBlockPositions, is_value);
    const int slot = position % kBlockPositions;
    reinterpret_cast<uint4*>(block.codes + slot * cache.head_dim)[unit % units_of_head] = data;
    if (unit % units_of_head == 0) block.scales[slot] = (is_value ? rows.v_scale : rows.k_scale)[from + head];
  }
}

}  // namespace

void launch_kv_commit(const __nv_bfloat16* k, const __nv_bfloat16* v, const LayerCache& cache,
                      const PromptSequence* sequences, int count, int max_rows, cudaStream_t stream) {
  if (count == 0 || max_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(max_rows), static_cast<unsigned>(count));
  launch_early(kv_commit_kernel, grid, kThreads, 0, stream, k, v, cache, sequences);
}

void launch_kv_commit(const QuantisedRows& rows, const LayerCache& cache, const PromptSequence* sequences, int count,
                      int max_rows, cudaStream_t stream) {
  if (count == 0 || max_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(max_rows), static_cast<unsigned>(count));
  launch_early(quantised_commit_kernel, grid, kThreads, 0, stream, rows, cache, sequences);
}

}  // namespace gemma
