// Matrix products of prompt rows on Hopper: out = end(in x weights^T), where `end` is nothing, GeGLU, or the rotary
// embedding of queries and keys. See wgmma_gemm.cuh.
//
// A persistent grid. Each block computes tiles of 128 rows by 80 to 256 outputs, one after the other: one thread copies
// panels of 64 columns of `in` and of the weights into a ring of stages in shared memory, through the copy engine; two
// warpgroups multiply them, 64 rows each, with all sums in registers.
//
// A tile's outputs come in two halves that may lie apart: a thread holds the same columns of both, so that a gate meets
// its up, and element i of a head element i + head_dim / 2, in its registers.
//
// Every output is a single sum, 16 columns at a time in ascending order: its bits depend neither on the tile's shape
// nor on where in it the row stands. So tiles follow the number of rows.
//
// Work: 2 * rows * outputs * columns operations. Bytes: in, weights and out once from memory; from the L2 cache `in`
// once for each tile of outputs and weights once for each tile of rows.

#include <algorithm>
#include <array>

#include "cuda_error.h"
#include "float_math.cuh"
#include "gemma/error.h"
#include "launch.cuh"
#include "matrix_map.h"
#include "ptx.cuh"
#include "wgmma.cuh"
#include "wgmma_gemm.cuh"

#pragma nv_diag_suppress 177  // functions that nothing calls: kernels are empty when compiled for other GPUs

namespace gemma {
namespace {

constexpr int kTileRows = 128;
constexpr int kConsumerWarps = 8;
constexpr int kThreads = 128 + 32 * kConsumerWarps;  // the producer's warpgroup first; one thread of it works
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168, "what a block starts with");
constexpr int kRowTilesTogether = 16;  // tiles of rows that are visited for one tile of outputs before the next one

constexpr int kPanelBytes = kPanelColumns * 2;  // of a row
constexpr int kAlignment = 1024;                // of panels; the barriers before them take less

/// Shared memory of a block that computes so many outputs at a time.
template <int kOutputs>
struct Memory {
  static_assert(kOutputs % 16 == 0, "half of them in whole groups of 8");
  static constexpr int kInBytes = kTileRows * kPanelBytes;
  static constexpr int kHalfBytes = kOutputs / 2 * kPanelBytes;
  static constexpr int kStageBytes = kInBytes + 2 * kHalfBytes;
  static constexpr int kStages = std::min(8, (227 * 1024 - 2 * kAlignment) / kStageBytes);
  static constexpr int kBytes = kStages * kStageBytes + 2 * kAlignment;
};

/// Whether the program was compiled for what this GPU can do.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ int is_built_for_wgmma = 1;
#else
__device__ int is_built_for_wgmma = 0;
#endif

/// The tiles of a product, in the order in which blocks take them.
struct TileGrid {
  int row_tiles;
  int output_tiles;

  __host__ __device__ int count() const { return row_tiles * output_tiles; }

  __device__ void find(int index, int& row_tile, int& output_tile) const {
    const int group_tiles = kRowTilesTogether * output_tiles;
    const int first = index / group_tiles * kRowTilesTogether;
    const int rows = min(kRowTilesTogether, row_tiles - first);
    row_tile = first + index % group_tiles % rows;
    output_tile = index % group_tiles / rows;
  }
};

// --- what sums become ---

/// Outputs of a tile are numbered from 0 in the product's own order; those of its first half are [first, first + n) and
/// those of its second half begin `distance` further.
struct PlainEnd : PlainProduct {
  __device__ int first_output(int tile, int tile_outputs) const { return tile * tile_outputs; }
  __device__ int distance(int tile_outputs) const { return tile_outputs / 2; }

  template <int kSums>
  __device__ void store(const float (&sum)[kSums], int first_row, int rows, int first) const {
    static_assert(kSums % 8 == 0);
    const int lane = threadIdx.x % 32;
    const bool is_odd = lane & 1;
#pragma unroll
    for (int i = 0; i < kSums; i += 8) {
      // Of two neighbouring groups of 8 columns, even lanes get four columns of the first and odd ones of the second.
      const int column = first + 2 * i + (is_odd ? 8 : 0) + (lane & 2) * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 a = {sum[i + 2 * half], sum[i + 2 * half + 1]};
        const float2 b = {sum[i + 4 + 2 * half], sum[i + 4 + 2 * half + 1]};
        const float x = __shfl_xor_sync(~0u, is_odd ? a.x : b.x, 1);
        const float y = __shfl_xor_sync(~0u, is_odd ? a.y : b.y, 1);
        const float4 four = is_odd ? float4{x, y, b.x, b.y} : float4{a.x, a.y, x, y};
        const int row = first_row + lane / 4 + 8 * half;
        if (row < rows && column < outputs)
          *reinterpret_cast<float4*>(out + static_cast<std::size_t>(row) * pitch + column) = four;
      }
    }
  }
};

struct GegluEnd : GegluProduct {
  __device__ int first_output(int tile, int tile_outputs) const { return tile * tile_outputs / 2; }
  __device__ int distance(int) const { return intermediate; }

  template <int kSums>
  __device__ void store(const float (&sum)[kSums], int first_row, int rows, int first) const {
    static_assert(kSums % 32 == 0);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kSums / 2; i += 16) {
      const int column = first + 2 * i + 8 * (lane % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + 4 * j + 2 * half;
          word[j] = pack_bf16(gelu(sum[at]) * sum[kSums / 2 + at], gelu(sum[at + 1]) * sum[kSums / 2 + at + 1]);
        }
        const uint4 eight = transpose_words(word);
        const int row = first_row + lane / 4 + 8 * half;
        if (row < rows && column < intermediate)
          *reinterpret_cast<uint4*>(out + static_cast<std::size_t>(row) * pitch + column) = eight;
      }
    }
  }
};

struct RopeEnd : RopeProduct {
  __device__ int first_output(int tile, int tile_outputs) const {
    const int tiles_of_head = output.head_dim / tile_outputs;
    return tile / tiles_of_head * output.head_dim + tile % tiles_of_head * tile_outputs / 2;
  }
  __device__ int distance(int) const { return output.head_dim / 2; }

  template <int kSums>
  __device__ void store(const float (&sum)[kSums], int first_row, int rows, int first) const {
    static_assert(kSums % 32 == 0);
    const int lane = threadIdx.x % 32;
    const int half_dim = output.head_dim / 2;
    const int head = first / output.head_dim;
    const int first_dim = first % output.head_dim;
    const bool is_turned = head < output.heads + output.kv_heads;
    const float scale = head < output.heads ? output.query_scale : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + lane / 4 + 8 * half;
      const bool is_there = row < rows;
      const float2* turns = output.rope + static_cast<std::size_t>(is_there ? output.position[row] : 0) * half_dim;
      __nv_bfloat16* out = head_of_row(output, static_cast<std::size_t>(row), head);
#pragma unroll
      for (int i = 0; i < kSums / 2; i += 16) {
        std::uint32_t low[4], high[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + 4 * j + 2 * half;
          float2 a = {sum[at], sum[at + 1]};
          float2 b = {sum[kSums / 2 + at], sum[kSums / 2 + at + 1]};
          if (is_turned) {
            const int dim = first_dim + 2 * i + 8 * j + 2 * (lane % 4);
            const float4 two = __ldg(reinterpret_cast<const float4*>(turns + dim));
            turn_pair(a.x, b.x, {two.x, two.y});
            turn_pair(a.y, b.y, {two.z, two.w});
          }
          low[j] = pack_bf16(a.x * scale, a.y * scale);
          high[j] = pack_bf16(b.x * scale, b.y * scale);
        }
        const uint4 first_eight = transpose_words(low), second_eight = transpose_words(high);
        const int dim = first_dim + 2 * i + 8 * (lane % 4);
        if (is_there) {
          *reinterpret_cast<uint4*>(out + dim) = first_eight;
          *reinterpret_cast<uint4*>(out + half_dim + dim) = second_eight;
        }
      }
    }
  }
};

// --- the product ---

/// @param in_map       boxes of 128 rows
/// @param weights_map  boxes of kOutputs / 2 rows
template <int kOutputs, class End>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ CUtensorMap in_map, const __grid_constant__ CUtensorMap weights_map,
                   const __grid_constant__ End end, TileGrid grid, int rows, int columns) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using M = Memory<kOutputs>;
  constexpr int kStages = M::kStages;

  char* const memory = dynamic_shared_memory();
  auto* full = reinterpret_cast<std::uint64_t*>(memory);
  std::uint64_t* empty = full + kStages;
  const unsigned address = shared_address(memory);
  char* stage_memory = memory + ((address + 2 * kAlignment - 1) / kAlignment * kAlignment - address);

  const int warp = static_cast<int>(threadIdx.x / 32);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&in_map);
    prefetch_tensor_map(&weights_map);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  let_next_kernel_start();
  wait_for_previous_kernel();

  const int steps = (columns + kPanelColumns - 1) / kPanelColumns;
  const int first_tile = static_cast<int>(blockIdx.x);
  const int blocks = static_cast<int>(gridDim.x);
  int stage = 0;
  unsigned parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };

  if (warp < 4) {
    give_up_registers<kProducerRegisters>();
    if (threadIdx.x == 0) {
      for (int tile = first_tile; tile < grid.count(); tile += blocks) {
        int row_tile, output_tile;
        grid.find(tile, row_tile, output_tile);
        const int row = row_tile * kTileRows;
        const int output = end.first_output(output_tile, kOutputs);
        const int distance = end.distance(kOutputs);
        for (int step = 0; step < steps; ++step, advance()) {
          char* to = stage_memory + stage * M::kStageBytes;
          const int column = step * kPanelColumns;
          barrier_wait(&empty[stage], parity ^ 1);
          barrier_expect_bytes(&full[stage], M::kStageBytes);
          matrix_copy(to, &in_map, column, row, &full[stage]);
          matrix_copy(to + M::kInBytes, &weights_map, column, output, &full[stage]);
          matrix_copy(to + M::kInBytes + M::kHalfBytes, &weights_map, column, output + distance, &full[stage]);
        }
      }
    }
    __syncwarp();
  } else {
    take_registers<kConsumerRegisters>();
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warpgroup = warp / 4 - 1;
    const auto release = [&](int used) {
      if (lane == 0) barrier_arrive(&empty[used]);
    };

    for (int tile = first_tile; tile < grid.count(); tile += blocks) {
      int row_tile, output_tile;
      grid.find(tile, row_tile, output_tile);
      float sum[kOutputs / 2];
      int used = 0;
      for (int step = 0; step < steps; ++step, advance()) {
        barrier_wait(&full[stage], parity);
        const char* panels = stage_memory + stage * M::kStageBytes;
        const std::uint64_t a = rows_operand(panels + warpgroup * 64 * kPanelBytes);
        const std::uint64_t b = rows_operand(panels + M::kInBytes);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          multiply(sum, a + operand_step(32 * i), b + operand_step(32 * i), step > 0 || i > 0);
        wgmma_commit();
        if (step > 0) {
          wgmma_wait<1>();
          release(used);
        }
        used = stage;
      }
      wgmma_wait<0>();
      release(used);
      sums_are_ready(sum);
      const int first_row = row_tile * kTileRows + (warp - 4) * 16;
      end.store(sum, first_row, rows, end.first_output(output_tile, kOutputs));
    }
  }
#endif
}

int multiprocessors() {
  int device = 0;
  int count = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// --- the kinds of products ---

constexpr int weight_rows(const PlainProduct& product) { return product.outputs; }
constexpr int weight_rows(const GegluProduct& product) { return 2 * product.intermediate; }
int weight_rows(const RopeProduct& product) { return product.output.width(); }

/// Tiles of outputs; a half tile may reach over the end.
int output_tiles(const PlainProduct& product, int tile) { return ceil_div(product.outputs, tile); }
int output_tiles(const GegluProduct& product, int tile) { return ceil_div(2 * product.intermediate, tile); }
int output_tiles(const RopeProduct& product, int tile) { return product.output.width() / tile; }

bool fits(const RopeProduct& product, int tile) { return product.output.head_dim % tile == 0; }
template <class Product>
bool fits(const Product&, int) {
  return true;
}

template <class Product>
struct Kind;

template <>
struct Kind<PlainProduct> {
  using End = PlainEnd;
  static constexpr std::array<int, 7> kTiles{256, 224, 192, 144, 128, 112, 80};
};

template <>
struct Kind<GegluProduct> {
  using End = GegluEnd;
  static constexpr std::array<int, 3> kTiles{256, 192, 128};
};

template <>
struct Kind<RopeProduct> {
  using End = RopeEnd;
  static constexpr std::array<int, 2> kTiles{256, 128};
};

template <int kOutputs, class Product>
void launch_tile(const Product& product, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows, int columns,
                 cudaStream_t stream) {
  using End = typename Kind<Product>::End;
  const auto kernel = product_kernel<kOutputs, End>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory<kOutputs>::kBytes));
  const TileGrid grid{ceil_div(rows, kTileRows), output_tiles(product, kOutputs)};
  const int blocks = std::min(grid.count(), multiprocessors());
  launch_early(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, Memory<kOutputs>::kBytes, stream,
               matrix_map(in, rows, columns, kTileRows),
               matrix_map(weights, weight_rows(product), columns, kOutputs / 2), End{product}, grid, rows, columns);
}

}  // namespace

bool has_wgmma() {
  int device = 0;
  int major = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major != 9) return false;
  int is_built = 0;
  check_cuda(cudaMemcpyFromSymbol(&is_built, is_built_for_wgmma, sizeof is_built));
  return is_built != 0;
}

template <class Product>
std::span<const int> wgmma_tiles() {
  return Kind<Product>::kTiles;
}

template <class Product>
int choose_wgmma_tile(const Product& product, int rows) {
  // Cycles for 64 columns: of the tensor cores, and of the L2 cache, which feeds a multiprocessor with so many bytes.
  constexpr double kBytesPerCycle = 45;
  const int processors = multiprocessors();
  int best = 0;
  double best_cycles = 0;
  for (const int outputs : Kind<Product>::kTiles) {
    if (!fits(product, outputs)) continue;
    const int tiles = ceil_div(rows, kTileRows) * output_tiles(product, outputs);
    const double cycles = std::max(4.0 * outputs, (kTileRows + outputs) * kPanelBytes / kBytesPerCycle);
    const double all = cycles * ceil_div(tiles, processors);
    if (best == 0 || all < best_cycles) {
      best = outputs;
      best_cycles = all;
    }
  }
  return best;
}

template <class Product>
void launch_wgmma_product(const Product& product, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows,
                          int columns, int tile, cudaStream_t stream) {
  if (rows == 0) return;
  const auto launch = [&]<std::size_t... kIndex>(std::index_sequence<kIndex...>) {
    constexpr auto kTiles = Kind<Product>::kTiles;
    const auto launch_if = [&]<std::size_t kTile>() {
      if (tile != kTiles[kTile]) return false;
      launch_tile<kTiles[kTile]>(product, in, weights, rows, columns, stream);
      return true;
    };
    return (launch_if.template operator()<kIndex>() || ...);
  };
  if (!launch(std::make_index_sequence<Kind<Product>::kTiles.size()>()))
    throw Error("there is no matrix product in tiles of " + std::to_string(tile) + " outputs");
}

template std::span<const int> wgmma_tiles<PlainProduct>();
template std::span<const int> wgmma_tiles<GegluProduct>();
template std::span<const int> wgmma_tiles<RopeProduct>();
template int choose_wgmma_tile(const PlainProduct&, int);
template int choose_wgmma_tile(const GegluProduct&, int);
template int choose_wgmma_tile(const RopeProduct&, int);
template void launch_wgmma_product(const PlainProduct&, const __nv_bfloat16*, const __nv_bfloat16*, int, int, int,
                                   cudaStream_t);
template void launch_wgmma_product(const GegluProduct&, const __nv_bfloat16*, const __nv_bfloat16*, int, int, int,
                                   cudaStream_t);
template void launch_wgmma_product(const RopeProduct&, const __nv_bfloat16*, const __nv_bfloat16*, int, int, int,
                                   cudaStream_t);

}  // namespace gemma
