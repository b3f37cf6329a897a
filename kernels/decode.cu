// The whole decode step of Gemma 2 in one persistent kernel, from tokens to logits.
//
// Decoding reads every weight once for each step, so it can only be as fast as memory is read. One block runs on each
// multiprocessor. Its producer warp streams the block's share of all weights, layer after layer, and of the keys and
// values of past positions through a ring of stages in shared memory (stream.cuh); eight consumer warps multiply.
// Between the steps of a layer the blocks meet at a grid barrier: five a layer. The stream does not stop at barriers.
//
// Arithmetic is the same for one row and for many: decode_product.cuh, decode_attention.cuh and decode_norm.cuh say in
// what order sums are made.
//
// Bytes of a step: all weights once, and the keys and values that the rows' queries see. With one row an H100 reads
// them at 68% (2B, context 512), 65% (2B, 8000), 83% (9B, 512) and 79% (9B, 8000) of 3.09 TB/s: see NOTES.md.

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

__device__ float gelu(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

template <int kRows>
__device__ void consume(const DecodeModel& model, const Shared& shared, int rows) {
  const int hidden = model.hidden;
  const int query_size = model.heads * model.head_dim;
  const int qkv_size = query_size + 2 * model.kv_heads * model.head_dim;
  GridBarrier grid(model.grid_arrivals);
  Dealer dealer;
  int next_piece = 0;
  const Operand normalized{shared.operand, operand_pitch(hidden)};
  const Operand attended{model.attended, query_size};
  const Operand activated{model.activated, model.intermediate};
  float* residual[2] = {model.residual[0], model.residual[1]};

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
    multiply<kRows, false>(
        shared, layer.gate_up, normalized, rows, next_piece, dealer, [&](int row, int output, float2 gate_up) {
          const std::size_t at = row * static_cast<std::size_t>(model.intermediate);
          model.activated[at + operand_order(output)] = __float2bfloat16_rn(gelu(gate_up.x) * gate_up.y);
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
    decode_kernel(const __grid_constant__ DecodeModel model, int stages) {
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
int fixed_bytes(int hidden, int rows) { return rows * operand_pitch(hidden) * 2 + kScratchBytes + kSmallBytes; }

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
  check_cuda(cudaLaunchKernelEx(&config, decode_kernel<kRows>, model, stages));
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
