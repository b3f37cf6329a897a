// The whole decode step of Gemma 2 in one persistent kernel, from tokens to logits.
//
// Decoding reads every weight once for each step, so it can only be as fast as memory is read. One block runs on each
// multiprocessor. Its producer warp streams the block's share of all weights, layer after layer, and of the keys and
// values of past positions through a ring of stages in shared memory (stream.cuh); eight consumer warps multiply.
// Between the steps of a layer the blocks meet at a grid barrier: five a layer (seven with more rows than one). The
// stream does not stop at barriers: a ring of 190 KB holds what memory gives in 8 us. Time is lost only where a chain
// of dependencies takes longer than that and the bytes that are used up on the way: from the end of one layer's `down`
// to the next one's `gate_up` four waits for the grid, two norms and attention follow each other.
//
// Arithmetic is the same for one row and for many: decode_product.cuh, decode_attention.cuh and decode_norm.cuh say in
// what order sums are made.
//
// Bytes of a step: all weights once, and the keys and values that the rows' queries see. NOTES.md has the share of an
// H100's bandwidth at which it reads them.

#include <algorithm>
#include <string>

#include "cuda_error.h"
#include "decode.cuh"
#include "decode_attention.cuh"
#include "decode_block.cuh"
#include "decode_norm.cuh"
#include "decode_product.cuh"
#include "gemma/error.h"
#include "stream.cuh"

namespace gemma {
namespace {

// --- the products, of which a step has four a layer and the head's ---

enum class Kind { kQkv, kAttentionOut, kGateUp, kDown, kHead };

// One loop over all products, and not one call for each kind: the code stays small enough for the instruction cache.
__device__ Kind kind_of(const DecodeModel& model, int product) {
  return product == 4 * model.layers ? Kind::kHead : static_cast<Kind>(product % 4);
}

/// The same in all layers: known without asking memory.
__device__ MatrixShape shape_of(const DecodeModel& model, Kind kind) {
  const int query_size = model.heads * model.head_dim;
  switch (kind) {
    case Kind::kQkv:
      return {query_size + 2 * model.kv_heads * model.head_dim, model.hidden, false};
    case Kind::kAttentionOut:
      return {model.hidden, query_size, false};
    case Kind::kGateUp:
      return {2 * model.intermediate, model.hidden, true};
    case Kind::kDown:
      return {model.hidden, model.intermediate, false};
    case Kind::kHead:
      break;
  }
  return model.head;
}

// What differs between layers is read from memory well before it is used: a read takes as long as copying several
// pieces, and the L1 cache forgets everything at each grid barrier.

__device__ MatrixSource source_of(const DecodeModel& model, int product) {
  if (product >= 4 * model.layers) return model.head.source();
  const DecodeLayer& layer = model.layer[product / 4];
  switch (static_cast<Kind>(product % 4)) {
    case Kind::kQkv:
      return layer.qkv.source();
    case Kind::kAttentionOut:
      return layer.attention_out.source();
    case Kind::kGateUp:
      return layer.gate_up.source();
    default:
      return layer.down.source();
  }
}

__device__ CacheLayer cache_of(const DecodeModel& model, int product) {
  const DecodeLayer& layer = model.layer[min(product / 4, model.layers - 1)];
  return {layer.is_local != 0, layer.index_in_kind};
}

// --- the producer: the same order of steps as the consumers', reduced to what they read ---

__device__ void stream_matrix(Producer& producer, const Slots& slots, const MatrixShape& shape,
                              const MatrixSource& source) {
  for (int part = 0; slots.count() > 0 && part <= slots.last_part(); ++part) {
    const int tile = slots.tile(part);
    int column = slots.first_piece(part) * kPieceColumns;
    for (int slot = slots.begin(part); slot < slots.end(part); ++slot, column += kPieceColumns)
      producer.copy_weights(shape, source, tile, column);
  }
}

__device__ void stream_keys_and_values(const DecodeModel& model, const Shared& shared, const CacheLayer& layer,
                                       int rows, Producer& producer, Dealer& dealer) {
  const int part_elements = kKeysInPart * model.head_dim;
  for (BlockRuns runs(model, shared, layer, rows, dealer); !runs.is_done(); runs.advance(model, shared, layer)) {
    const BlockRun& run = runs.run();
    int unit = cache_unit(model, shared, layer, run.row, run.first);
    for (int block = run.first; block < run.first + run.count; ++block) {
      const __nv_bfloat16* keys = block_in_cache(model, layer, unit, run.kv_head, block, false);
      const __nv_bfloat16* values = block_in_cache(model, layer, unit, run.kv_head, block, true);
      if (block + 1 < run.first + run.count) unit = cache_unit(model, shared, layer, run.row, block + 1);
      const int first = run.range.first_part(block);
      for (int part = first; part < first + run.range.parts(block); ++part) {
        producer.copy_pair(keys + part * part_elements, values + part * part_elements, part_elements);
      }
    }
  }
}

__device__ __forceinline__ void produce(const DecodeModel& model, const Shared& shared, int rows) {
  Producer producer(shared.stream);
  Dealer dealer;
  MatrixSource next = source_of(model, 0), after_next = source_of(model, 1);
  CacheLayer cache = cache_of(model, 0);
  for (int product = 0; product <= 4 * model.layers; ++product) {
    const MatrixSource source = next;
    next = after_next;
    after_next = source_of(model, product + 2);
    producer.expect(next);
    const Kind kind = kind_of(model, product);
    if (kind == Kind::kQkv || kind == Kind::kHead) dealer.begin_layer();
    if (kind == Kind::kAttentionOut) {
      stream_keys_and_values(model, shared, cache, rows, producer, dealer);
      cache = cache_of(model, product + 4);
    }
    const MatrixShape shape = shape_of(model, kind);
    stream_matrix(producer, Slots(dealer.deal_pieces(shape), shape.pieces_in_tile()), shape, source);
  }
}

// --- the consumers ---

__device__ float gelu(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

/// All consumers: copies the rows that normalize() has written to memory to where the next product reads them.
__device__ void copy_operand(const Shared& shared, const __nv_bfloat16* normalized, int rows, int hidden) {
  const int chunks = hidden / 8;  // of 16 bytes in a row
  for (int i = static_cast<int>(threadIdx.x); i < rows * chunks; i += kConsumers) {
    const int row = i / chunks;
    copy_async_16(shared.operand + row * operand_pitch(hidden) + (i - row * chunks) * 8, normalized + 8 * i);
  }
  copy_async_commit();
  copy_async_wait<0>();
}

template <int kRows, int kLaneDims>
__device__ __forceinline__ void consume(const DecodeModel& model, const Shared& shared, int rows) {
  const int hidden = model.hidden;
  const int query_size = model.heads * model.head_dim;
  GridBarrier grid(model.exchange);
  Carries carries(model.exchange, kRows * kPieceRows);
  Dealer dealer;
  int next_piece = 0;

  // Every block has the only row for itself; many rows are normalised by one block each.
  const int own_row = kRows == 1 ? 0 : static_cast<int>(blockIdx.x);
  const bool has_row = kRows == 1 || own_row < rows;
  ResidualRow residual(hidden, has_row);
  const std::size_t offset = static_cast<std::size_t>(own_row) * hidden;
  const auto normalize = [&](int half) {
    if (has_row) {
      if (half > 0) residual.add(shared, model.projected + offset, model.norm_eps);
      residual.normalize(shared, model.norm_eps, kRows == 1 ? shared.operand : model.normalized + offset);
      if (kRows > 1 || blockIdx.x == 0) residual.store(model.residual[half % 2] + offset);
    }
    if (kRows > 1) {
      grid.arrive();
      grid.wait();
      copy_operand(shared, model.normalized, rows, hidden);
    }
    consumer_barrier();
  };
  const auto deal = [&](Kind kind) {
    const MatrixShape shape = shape_of(model, kind);
    return Slots(dealer.deal_pieces(shape), shape.pieces_in_tile());
  };
  const auto multiply_with = [&](Kind kind, const Slots& slots) {
    const MatrixShape shape = shape_of(model, kind);
    const Operand operand = kind == Kind::kAttentionOut ? Operand{model.attended, query_size}
                            : kind == Kind::kDown       ? Operand{model.activated, model.intermediate}
                                                        : Operand{shared.operand, operand_pitch(hidden)};
    float* out = kind == Kind::kHead ? model.logits : kind == Kind::kQkv ? model.qkv : model.projected;
    const std::size_t pitch = kind == Kind::kHead ? model.logits_pitch : static_cast<std::size_t>(shape.outputs);
    multiply<kRows>(shared, shape, slots, operand, rows, next_piece, carries, [&](int row, int output, float2 values) {
      if (kind == Kind::kGateUp) {
        const std::size_t at = row * static_cast<std::size_t>(model.intermediate);
        model.activated[at + operand_order(output)] = __float2bfloat16_rn(gelu(values.x) * values.y);
        return;
      }
      if (kind == Kind::kHead) {
        values = {soft_cap(values.x, model.final_softcap), soft_cap(values.y, model.final_softcap)};
      }
      float* to = out + row * pitch + output;
      __stcg(to, values.x);
      if (output + 1 < shape.outputs) __stcg(to + 1, values.y);
    });
  };

  residual.embed(model.embed + (has_row ? static_cast<std::size_t>(shared.token[own_row]) * hidden : 0),
                 model.embedding_scale, model.layer[0].attention_norm);
  dealer.begin_layer();
  Slots slots = deal(Kind::kQkv);
  // Attention and MLP are alike: a norm, two products with something between them, and the norm of what is added. What
  // can be worked out beforehand is worked out between arriving at a grid barrier and waiting there.
  for (int half = 0; half <= 2 * model.layers; ++half) {
    const bool is_head = half == 2 * model.layers;
    const bool is_attention = half % 2 == 0;
    const DecodeLayer& layer = model.layer[min(half / 2, model.layers - 1)];
    const CacheLayer cache{layer.is_local != 0, layer.index_in_kind};
    const float* added_norm = is_attention ? layer.attention_post_norm : layer.mlp_post_norm;
    const float* next_norm = is_attention                  ? layer.mlp_norm
                             : half < 2 * model.layers - 1 ? (&layer)[1].attention_norm
                                                           : model.final_norm;
    BlockRuns runs;
    normalize(half);
#pragma unroll 1
    for (int second = 0; second < 2; ++second) {
      const bool is_second = second == 1;
      if (is_second && is_attention) {
        attend<kLaneDims>(model, cache, shared, runs, next_piece);
        grid.arrive();
        grid.wait();
      }
      multiply_with(is_head        ? Kind::kHead
                    : is_attention ? (is_second ? Kind::kAttentionOut : Kind::kQkv)
                                   : (is_second ? Kind::kDown : Kind::kGateUp),
                    slots);
      if (is_head) return;
      grid.arrive();
      if (is_second) break;
      if (is_attention) runs = BlockRuns(model, shared, cache, rows, dealer);
      slots = deal(is_attention ? Kind::kAttentionOut : Kind::kDown);
      grid.wait();
    }
    residual.fetch(model.residual[half % 2] + offset, added_norm, next_norm);
    if (!is_attention) dealer.begin_layer();
    slots = deal(is_attention ? Kind::kGateUp : half < 2 * model.layers - 1 ? Kind::kQkv : Kind::kHead);
    grid.wait();
  }
}

constexpr int kMaxStages = 32;
constexpr int kCarriedBytes = 2 * kDecodeRows * kPieceRows * 4;
// Carried sums; sums, flags, the rows' tokens, positions and rings; then the stages' barriers.
constexpr int kSmallBytes = kCarriedBytes + 320 + 16 * kMaxStages;

template <int kRows, int kLaneDims>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeModel model, int stages) {
  extern __shared__ __align__(1024) char memory[];
  Shared shared;
  shared.stream.stage_memory = memory;
  shared.stream.stages = stages;
  shared.stream.stages_inverse = 0xffffffffu / static_cast<unsigned>(stages) + 1;
  char* rest = memory + static_cast<std::size_t>(stages) * kStageBytes;
  shared.scratch = reinterpret_cast<float*>(rest);
  rest += kScratchBytes;
  shared.carried = reinterpret_cast<float*>(rest);
  shared.sums = shared.carried + kCarriedBytes / 4;
  shared.is_last = reinterpret_cast<int*>(shared.sums + 2 * kConsumerWarps);
  shared.token = shared.is_last + 1;
  shared.position = shared.token + kDecodeRows;
  shared.ring = shared.position + kDecodeRows;
  shared.stream.full = reinterpret_cast<std::uint64_t*>(rest + kSmallBytes - 16 * kMaxStages);
  shared.stream.empty = shared.stream.full + kMaxStages;
  rest += kSmallBytes;
  shared.operand = reinterpret_cast<__nv_bfloat16*>(rest);

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
    give_up_registers<56>();
    if (threadIdx.x < kConsumers + producer_threads()) produce(model, shared, rows);
  } else {
    take_registers<224>();
    consume<kRows, kLaneDims>(model, shared, rows);
  }
}

/// Shared memory of a block beside the stages.
int fixed_bytes(int hidden, int rows) { return rows * operand_pitch(hidden) * 2 + kScratchBytes + kSmallBytes; }

constexpr int kMinStages = 3;

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

template <int kRows, int kLaneDims>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  const int fixed = fixed_bytes(model.hidden, rows);
  const int stages = std::min(kMaxStages, (attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed) / kStageBytes);
  const int bytes = fixed + stages * kStageBytes;
  check_cuda(cudaFuncSetAttribute(decode_kernel<kRows, kLaneDims>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));

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
  check_cuda(cudaLaunchKernelEx(&config, decode_kernel<kRows, kLaneDims>, model, stages));
}

template <int kRows>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (model.head_dim > 128) {
    launch<kRows, 8>(model, rows, stream);
  } else if (model.head_dim > 64) {
    launch<kRows, 4>(model, rows, stream);
  } else {
    launch<kRows, 2>(model, rows, stream);
  }
}

}  // namespace

std::size_t decode_exchange_size() {
  return kFirstCarry + static_cast<std::size_t>(attribute(cudaDevAttrMultiProcessorCount)) * kDecodeRows * kPieceRows;
}

int decode_rows_at_once(int hidden) {
  if (hidden > ResidualRow::kMaxHidden) {
    throw Error("the CUDA device takes hidden sizes of up to " + std::to_string(ResidualRow::kMaxHidden) + ", not " +
                std::to_string(hidden) + "; use --device cpu");
  }
  const int memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  int rows = std::min(kDecodeRows, attribute(cudaDevAttrMultiProcessorCount));  // each is normalised by its own block
  while (rows > 0 && fixed_bytes(hidden, rows) + kMinStages * kStageBytes > memory) --rows;
  if (rows == 0) {
    throw Error("this GPU's blocks have " + std::to_string(memory / 1024) +
                " KB of shared memory, too little for a hidden size of " + std::to_string(hidden));
  }
  return rows;
}

void launch_decode(const DecodeModel& model, int max_rows, cudaStream_t stream) {
  const int carries = attribute(cudaDevAttrMultiProcessorCount) * (max_rows == 1 ? 1 : kDecodeRows) * kPieceRows;
  check_cuda(cudaMemsetAsync(model.exchange, 0, static_cast<std::size_t>(kFirstCarry + carries) * 8, stream));
  if (max_rows == 1) {
    launch<1>(model, 1, stream);
  } else {
    launch<kDecodeRows>(model, max_rows, stream);
  }
}

}  // namespace gemma
