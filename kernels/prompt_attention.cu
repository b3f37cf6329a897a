// Attention of a prompt chunk: out = softmax(mask(softcap(q k^T))) v, for each row and query head.
//
// A block works on 64 neighbouring rows of one sequence and one query head, 16 rows a warp, and goes over the keys that
// they see in tiles of 64, aligned to absolute positions, in ascending order. Scores and output stay in registers
// (online softmax); both products run on the tensor cores, with the weights rounded to bf16. Tiles outside the window
// or after the last row are never touched, so a local layer costs rows x window. Keys before the chunk come from the
// cache, the others from the chunk itself.
//
// Where the chunk begins decides which rows share a block, and must not show in the results: a tile without any key
// that a row sees leaves the row's largest score, sum and output as they are, to the last bit.
//
// One tile of keys and one of values are in shared memory (with the queries 96 KB for a head size of 256, which every
// GPU from compute capability 8.0 on has). The next keys arrive while values are multiplied, the values while scores
// are made.
//
// Work: 4 * head_dim operations for each query head, row and key that it sees. Bytes: queries and output once; keys and
// values once for every 64 rows and query head, mostly from the L2 cache.

#include <string>

#include "cuda_error.h"
#include "float_math.cuh"
#include "gemma/error.h"
#include "launch.cuh"
#include "prompt_tile.cuh"
#include "ptx.cuh"
#include "wgmma_attention.cuh"

namespace gemma {
namespace {

constexpr int kTile = kAttentionTile;  // rows of a block, and keys of a tile
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = kTile / kWarps;
constexpr int kMaxHeadDim = 256;

static_assert(kWarpRows == 16, "the rows of a tensor core operand");

// --- head sizes 64, 128, 256: tensor cores ---

/// A tile in shared memory: [64, kHeadDim], the 16-byte units of a row permuted so that the same unit of 8 neighbouring
/// rows lies in different banks.
template <int kHeadDim>
struct SharedTile {
  static constexpr int kUnits = kHeadDim / 8;  // of a row
  static constexpr int kRowsAtOnce = kThreads / kUnits;
  static constexpr int kBytes = kTile * kHeadDim * 2;

  __nv_bfloat16* memory;

  __device__ __nv_bfloat16* at(int row, int unit) const { return memory + row * kHeadDim + ((unit ^ (row & 7)) * 8); }

  /// Begins to copy the rows `source` gives for 0 to 63; those that are not `wanted` become zeros.
  template <class Source, class Wanted>
  __device__ void copy(const Source& source, const Wanted& wanted, const void* any_address) const {
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / kUnits; row < kTile; row += kRowsAtOnce) {
      const bool is_wanted = wanted(row);
      copy_async_16_or_zero(at(row, unit), is_wanted ? source(row) + unit * 8 : any_address, is_wanted);
    }
  }
};

/// What a lane knows of the two rows of its warp that it works on, lane / 4 and lane / 4 + 8. The four lanes of a row
/// have the same largest score.
struct RowState {
  float largest[2] = {kMaskedScore, kMaskedScore};  // score so far
  float sum[2] = {0, 0};                            // of this lane's weights
};

/// Turns a warp's scores of a tile into weights; scores are in units of log2(e) once they are capped. score[j] holds,
/// as the tensor cores give them, keys 8 j + 2 (lane % 4) and the one after, for each of the two rows.
/// @param weight  [j][row]: pairs of neighbouring keys
/// @param scale   by which earlier weights must be multiplied
__device__ void soften(const PromptAttention& attention, const AttentionRows& rows, int first_key,
                       float (&score)[kTile / 8][4], RowState& state, std::uint32_t (&weight)[kTile / 8][2],
                       float (&scale)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const SoftCap cap(attention.softcap);
  float size = 0;
#pragma unroll
  for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) size = fmaxf(size, fabsf(score[j][i]));
  }
  const bool has_large = __any_sync(~0u, size > cap.cap);
#pragma unroll
  for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (attention.softcap == 0) {
        score[j][i] = __fmul_rn(score[j][i], kLog2E);
      } else {
        score[j][i] = has_large ? cap(score[j][i]) : cap.small(score[j][i]);
      }
    }
  }
  if (!rows.see_all(first_key, attention.window)) {
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = rows.first_query + lane / 4 + i / 2 * 8;
        const int key = first_key + 8 * j + 2 * (lane % 4) + i % 2;
        if (!is_visible(query, key, attention.window)) score[j][i] = kMaskedScore;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float largest = state.largest[row];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) largest = fmaxf(largest, fmaxf(score[j][2 * row], score[j][2 * row + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    // A row that has seen no key yet: 2^(masked - masked) would be 1.
    const float origin = largest == kMaskedScore ? 0.0f : largest;
    scale[row] = exp2_approx(state.largest[row] - origin);
    state.largest[row] = largest;
    float sum = __fmul_rn(state.sum[row], scale[row]);
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      weight[j][row] = pack_bf16(exp2_approx(score[j][2 * row] - origin), exp2_approx(score[j][2 * row + 1] - origin));
      sum += low_half(weight[j][row]) + high_half(weight[j][row]);  // the weights that values are multiplied by
    }
    state.sum[row] = sum;
  }
}

/// Blocks that are to share a multiprocessor: so many fit into the shared memory and registers of one.
template <int kHeadDim>
constexpr int kBlocksTogether = kHeadDim == 256 ? 2 : 3;

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, kBlocksTogether<kHeadDim>)
    attention_kernel(const __grid_constant__ PromptAttention attention) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = attention.sequences[blockIdx.z];
  const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTile;  // the longest work first
  if (first_row >= sequence.rows) return;
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / (attention.heads / attention.cache.kv_heads);
  const int window = attention.window;
  const int row_count = min(kTile, sequence.rows - first_row);
  const AttentionRows rows{sequence.position + first_row, sequence.position + first_row + row_count - 1};

  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = warp * kWarpRows;
  const AttentionRows warp_rows{rows.first_query + warp_row,
                                min(rows.first_query + warp_row + kWarpRows - 1, rows.last_query)};

  char* const memory = dynamic_shared_memory();
  using Tile = SharedTile<kHeadDim>;
  const Tile queries{reinterpret_cast<__nv_bfloat16*>(memory)};
  const Tile keys{reinterpret_cast<__nv_bfloat16*>(memory + Tile::kBytes)};
  const Tile values{reinterpret_cast<__nv_bfloat16*>(memory + 2 * Tile::kBytes)};

  // The slots of keys that no row sees may hold anything, and 0 * not-a-number is not 0: they become zeros.
  const auto copy_tile = [&](const Tile& to, int tile, bool is_value) {
    const TileSource source(attention, sequence, kv_head, tile, is_value);
    to.copy(
        [&](int key) { return source[key]; },
        [&](int key) { return tile * kTile + key >= rows.first_key(window) && tile * kTile + key <= rows.last_query; },
        attention.q);
  };
  const std::size_t pitch = static_cast<std::size_t>(attention.heads) * kHeadDim;
  const std::size_t offset =
      (static_cast<std::size_t>(sequence.first_row) + first_row) * pitch + static_cast<std::size_t>(head) * kHeadDim;

  const int last_tile = rows.last_query / kTile;
  int tile = rows.first_key(window) / kTile;
  queries.copy([&](int row) { return attention.q + offset + row * pitch; }, [&](int row) { return row < row_count; },
               attention.q);
  copy_tile(keys, tile, false);
  copy_async_commit();

  float out[kHeadDim / 8][4] = {};
  RowState state;
  for (; tile <= last_tile; ++tile) {
    const int first_key = tile * kTile;
    const bool has_work = warp_rows.first_query <= rows.last_query && warp_rows.sees_any(first_key, window);
    copy_async_wait<0>();
    __syncthreads();  // the keys are there, and all warps have used the last tile's values
    copy_tile(values, tile, true);
    copy_async_commit();

    float score[kTile / 8][4] = {};
    if (has_work) {
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        std::uint32_t a[4];
        load_matrices(a, queries.at(warp_row + lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (int j = 0; j < kTile / 16; ++j) {
          std::uint32_t b[4];
          load_matrices(b, keys.at(16 * j + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
          multiply_accumulate(score[2 * j], a[0], a[1], a[2], a[3], b[0], b[1]);
          multiply_accumulate(score[2 * j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // all warps have used the keys
    if (tile < last_tile) copy_tile(keys, tile + 1, false);
    copy_async_commit();

    std::uint32_t weight[kTile / 8][2];
    if (has_work) {
      float scale[2];
      soften(attention, warp_rows, first_key, score, state, weight, scale);
      if (__any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f)) {
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[j][i] *= scale[i / 2];
        }
      }
    }
    copy_async_wait<1>();
    __syncthreads();  // the values are there
    if (has_work) {
#pragma unroll
      for (int step = 0; step < kTile / 16; ++step) {
        const std::uint32_t(&w)[2] = weight[2 * step];
        const std::uint32_t(&more)[2] = weight[2 * step + 1];
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
          std::uint32_t b[4];
          load_matrices_transposed(b, values.at(16 * step + lane % 16, 2 * j + lane / 16));
          multiply_accumulate(out[2 * j], w[0], w[1], more[0], more[1], b[0], b[1]);
          multiply_accumulate(out[2 * j + 1], w[0], w[1], more[0], more[1], b[2], b[3]);
        }
      }
    }
  }
  copy_async_wait<0>();

  // Through the warp's own rows of the queries' tile, to write whole rows.
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float sum = state.sum[row];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float scale = 1.0f / sum;
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      __nv_bfloat16* to = queries.at(warp_row + lane / 4 + 8 * row, j) + 2 * (lane % 4);
      *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(out[j][2 * row] * scale, out[j][2 * row + 1] * scale);
    }
  }
  __syncwarp();
  for (int i = lane; i < kWarpRows * Tile::kUnits; i += 32) {
    const int row = warp_row + i / Tile::kUnits;
    const int unit = i % Tile::kUnits;
    if (row < row_count) {
      *reinterpret_cast<uint4*>(attention.out + offset + row * pitch + unit * 8) =
          *reinterpret_cast<const uint4*>(queries.at(row, unit));
    }
  }
}

// --- any other head size: one warp for each row and head ---

constexpr int kLaneDims = kMaxHeadDim / 32;

__device__ float dot(const float* query, const __nv_bfloat16* key, int head_dim) {
  float sum = 0;
  for (int dim = 0; dim < head_dim; dim += 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(key + dim);
    const std::uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(query[dim + 2 * i], low_half(pairs[i]), sum);
      sum = fmaf(query[dim + 2 * i + 1], high_half(pairs[i]), sum);
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) plain_attention_kernel(const __grid_constant__ PromptAttention attention) {
  __shared__ float queries[kWarps][kMaxHeadDim];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const PromptSequence sequence = attention.sequences[blockIdx.z];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kWarps + warp;
  if (row >= sequence.rows) return;
  const int head_dim = attention.cache.head_dim;
  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / (attention.heads / attention.cache.kv_heads);
  const int position = sequence.position + row;
  const int first_key = first_visible(position, attention.window);
  const std::size_t offset = ((static_cast<std::size_t>(sequence.first_row) + row) * attention.heads + head) * head_dim;

  const float cap = attention.softcap;
  const float inverse_cap = cap > 0 ? 1.0f / cap : 0.0f;
  float* query = queries[warp];
  for (int dim = lane; dim < head_dim; dim += 32) query[dim] = __bfloat162float(attention.q[offset + dim]);
  __syncwarp();

  float out[kLaneDims] = {};
  float largest = kMaskedScore, sum = 0;
  for (int tile = first_key / kTile; tile <= position / kTile; ++tile) {
    // Keys of the tile that the row sees: at least one.
    const int begin = max(first_key - tile * kTile, 0);
    const int end = min(position - tile * kTile, kTile - 1) + 1;
    const TileSource keys(attention, sequence, kv_head, tile, false);
    const TileSource values(attention, sequence, kv_head, tile, true);
    float score[2], weight[2];  // of keys lane and lane + 32
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = lane + 32 * i;
      score[i] = kMaskedScore;
      if (key < begin || key >= end) continue;
      score[i] = dot(query, keys[key], head_dim);
      if (cap > 0) score[i] = __fmul_rn(cap, tanhf(__fmul_rn(score[i], inverse_cap)));
    }
    const float before = largest;
    largest = fmaxf(largest, warp_max(fmaxf(score[0], score[1])));
#pragma unroll
    for (int i = 0; i < 2; ++i) weight[i] = expf(score[i] - largest);
    const float scale = expf(before - largest);
    sum = fmaf(sum, scale, warp_sum(weight[0] + weight[1]));
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) out[i] *= scale;
    for (int key = begin; key < end; ++key) {
      const float w = __shfl_sync(~0u, key < 32 ? weight[0] : weight[1], key % 32);
      const __nv_bfloat16* value = values[key];
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) {
        const int dim = lane + 32 * i;
        if (dim < head_dim) out[i] = fmaf(w, __bfloat162float(value[dim]), out[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int dim = lane + 32 * i;
    if (dim < head_dim) attention.out[offset + dim] = __float2bfloat16_rn(out[i] / sum);
  }
}

unsigned blocks_for(int count, int per_block) { return static_cast<unsigned>((count + per_block - 1) / per_block); }

template <int kHeadDim>
void launch(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream) {
  constexpr int kBytes = 3 * SharedTile<kHeadDim>::kBytes;
  const auto kernel = attention_kernel<kHeadDim>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  const dim3 grid(static_cast<unsigned>(attention.heads), blocks_for(max_rows, kTile), static_cast<unsigned>(count));
  launch_early(kernel, grid, kThreads, kBytes, stream, attention);
}

}  // namespace

void launch_prompt_attention(const PromptAttention& attention, int count, int max_rows, cudaStream_t stream) {
  if (count == 0 || max_rows == 0) return;
  const int head_dim = attention.cache.head_dim;
  if (head_dim % 16 != 0 || head_dim <= 0 || head_dim > kMaxHeadDim) {
    throw Error("the GPU's attention takes head sizes that are a multiple of 16 up to 256, not " +
                std::to_string(head_dim));
  }
  if (attention.uses_wgmma && fits_wgmma_attention(attention)) {
    launch_wgmma_attention(attention, count, max_rows, stream);
    return;
  }
  switch (head_dim) {
    case 64:
      launch<64>(attention, count, max_rows, stream);
      break;
    case 128:
      launch<128>(attention, count, max_rows, stream);
      break;
    case 256:
      launch<256>(attention, count, max_rows, stream);
      break;
    default: {
      const dim3 grid(static_cast<unsigned>(attention.heads), blocks_for(max_rows, kWarps),
                      static_cast<unsigned>(count));
      launch_early(plain_attention_kernel, grid, kThreads, 0, stream, attention);
    }
  }
}

}  // namespace gemma
