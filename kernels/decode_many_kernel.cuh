#pragma once

// The whole decode step of Gemma 2 in one persistent kernel, for 9 to 64 rows (and for fewer where decode.cu's does
// not fit): every weight is read once for all of them.
//
// The kernel is built as decode.cu's, from the same stream, attention and norms, and rows get the same bits. So many
// rows' activations take more than a block can hold, so products go panel by panel (decode_many_product.cuh). Those
// with few outputs (qkv, attention_out, down) are split over the blocks along their columns as well, and leave a sum
// for each piece of columns; those with many (gate_up, head) are whole. A row is normalised once, by one block. Seven
// grid barriers a layer, one more where texts are short (decode_partials.cuh), and one more for each product that
// add_up_pieces() sees to.
//
// Bytes of a step: all weights once, the keys and values that the rows' queries see, and 4 bytes for each logit. Of 64
// rows of 2B at context 512 that is 5.2 + 3.5 GB, of 9B 18.5 + 11.3 GB. Sums of pieces and activations, some 20 MB a
// layer of 2B, stay in the L2 cache. NOTES.md has the share of an H100's bandwidth that is reached.

#include <algorithm>
#include <type_traits>

#include "cuda_error.h"
#include "decode.cuh"
#include "decode_attention.cuh"
#include "decode_block.cuh"
#include "decode_launch.cuh"
#include "decode_many_product.cuh"
#include "decode_norm.cuh"
#include "decode_product.cuh"
#include "decode_steps.cuh"
#include "stream.cuh"

namespace gemma {
namespace many {

template <WeightType kType>
using TypeConstant = std::integral_constant<WeightType, kType>;

/// Whether embedding and head have 8 bits where the layers have 4.
template <WeightType kLayers>
__device__ bool has_own_head_type(const DecodeModel& model) {
  return kLayers == WeightType::kQ4 && model.head_type == WeightType::kQ8;
}

/// Calls use(TypeConstant<the type of embedding and head>).
template <WeightType kLayers, class Use>
__device__ void with_head_type(const DecodeModel& model, const Use& use) {
  if constexpr (kLayers == WeightType::kQ4) {
    if (has_own_head_type<kLayers>(model)) return use(TypeConstant<WeightType::kQ8>{});
  }
  use(TypeConstant<kLayers>{});
}

/// Whose sums over pieces of columns are left to be added up by their readers, or by add_up_pieces().
__device__ inline constexpr bool is_split(Kind kind) { return kind != Kind::kGateUp && kind != Kind::kHead; }

// --- attention's shares, of which all local layers have the same, and so have all global ones ---

struct AttentionShares {
  AttentionShare of_kind[2];  // of a global layer, of a local one

  __device__ const AttentionShare& of(const CacheLayer& layer) const { return of_kind[layer.is_local]; }
};

template <class Format>
__device__ AttentionShare share_attention(const DecodeModel& model, const Shared<Format>& shared,
                                          const CacheLayer& layer, int rows) {
  const auto blocks_of = [&](int row) {
    return visible_keys(model, layer, shared.position[row]).blocks() * model.kv_heads;
  };
  long long total = 0;
  for (int row = 0; row < rows; ++row) total += blocks_of(row);
  // Shares begin behind one another at the blocks of the grid that come last in the products, too.
  const int place = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  AttentionShare own{static_cast<int>(total * place / gridDim.x), static_cast<int>(total * (place + 1) / gridDim.x)};
  own.has_short_texts = has_short_texts(model, shared, layer, rows);
  while (own.row + 1 < rows && own.first_in_row + blocks_of(own.row) <= own.first)
    own.first_in_row += blocks_of(own.row++);
  return own;
}

// --- the producer: the same order of steps as the consumers', reduced to what they read ---

template <KvType kKv, class Format>
__device__ __forceinline__ void produce(const DecodeModel& model, const Shared<Format>& shared,
                                        const AttentionShares& shares, int tiles_in_group, int index) {
  constexpr WeightType kLayers = Format::kLayers;
  Producer<Format> producer(shared.stream, index);
  TileDealer dealer;
  MatrixSource next = source_of(model, 0), after_next = source_of(model, 1);
  CacheLayer cache = cache_of(model, 0);
  const auto stream_whole = [&]<WeightType kType>(TypeConstant<kType>, const MatrixShape& shape,
                                                  const MatrixSource& source) {
    constexpr int kColumns = columns_in_piece<Format, kType>();
    stream_panels<kType>(producer, shape, source, WholePanels<kColumns>(shape, dealer, tiles_in_group));
  };
  for (int product = 0; product <= 4 * model.layers; ++product) {
    const MatrixSource source = next;
    next = after_next;
    after_next = source_of(model, product + 2);
    producer.expect(next);
    const Kind kind = kind_of(model, product);
    if (kind == Kind::kAttentionOut) {
      stream_keys_and_values<kKv>(model, shared, cache, producer, shares.of(cache));
      cache = cache_of(model, product + 4);
    }
    const MatrixShape shape = shape_of(model, kind);
    if (is_split(kind)) {
      stream_panels<kLayers>(producer, shape, source, SplitPanels(shape));
    } else if (kind == Kind::kHead && has_own_head_type<kLayers>(model)) {
      stream_whole(TypeConstant<WeightType::kQ8>{}, shape, source);
    } else {
      stream_whole(TypeConstant<kLayers>{}, shape, source);
    }
  }
}

// --- the consumers ---

template <int kRows, int kLaneDims, KvType kKv, class Format>
__device__ __forceinline__ void consume(const DecodeModel& model, const Shared<Format>& shared,
                                        const AttentionShares& shares, const Totals& totals, int rows) {
  constexpr WeightType kLayers = Format::kLayers;
  const int hidden = model.hidden;
  const int query_size = model.heads * model.head_dim;
  GridBarrier<true> grid(reinterpret_cast<unsigned*>(model.exchange), 0);
  TileDealer dealer;
  int next_piece = 0;
  const int whole_rows = (rows + kRowsInFragment - 1) / kRowsInFragment * kRowsInFragment;
  const FragmentOperand normalized{model.normalized, hidden,
                                   kLayers == WeightType::kBf16 ? nullptr : model.operand_groups, whole_rows};
  const FragmentOperand attended{model.attended, query_size, nullptr, whole_rows};
  const FragmentOperand activated{model.activated, model.intermediate, nullptr, whole_rows};

  // Each row is normalised by one block, always the same: its first row is asked for ahead of the wait for the grid.
  const int first_row = static_cast<int>(blockIdx.x);
  const auto residual_at = [&](int row) { return model.residual[0] + static_cast<std::size_t>(row) * hidden; };
  const auto embed = [&](ResidualRow& residual, int row) {
    const int token = shared.token[row];
    const float* next_norm = model.layer[0].attention_norm;
    with_head_type<kLayers>(model, [&]<WeightType kType>(TypeConstant<kType>) {
      if constexpr (kType == WeightType::kBf16) {
        residual.embed(static_cast<const __nv_bfloat16*>(model.embed) + static_cast<std::size_t>(token) * hidden,
                       model.embedding_scale, next_norm);
      } else {
        const std::size_t units = static_cast<std::size_t>(token / kPieceRows) * units_in_tile(hidden);
        residual.template embed_packed<kType>(static_cast<const std::byte*>(model.embed) + units * unit_bytes(kType),
                                              token % kPieceRows, model.embedding_scale, next_norm);
      }
    });
  };
  const auto normalize = [&](const ResidualRow& residual, int row) {
    if constexpr (kLayers == WeightType::kBf16) {
      residual.normalize(shared, model.norm_eps, [&](int column) { return normalized.at(row, column); });
    } else {
      residual.normalize_to_halves(shared, model.norm_eps, [&](int unit, const uint2& pairs, const DigitGroup& group) {
        normalized.put(row, unit, pairs, group);
      });
    }
    residual.store(residual_at(row));
  };
  const auto wait_for_grid = [&] {
    grid.arrive();
    grid.wait();
  };
  /// All that is between two products.
  const auto add_and_normalize = [&](SplitProduct added, const float* added_norm, const float* next_norm) {
    if (added.pieces >= kManyPieces) {
      wait_for_grid();
      add_up_pieces(added, rows);
    }
    // A new one, so that the compiler sees that the last one need not be kept.
    ResidualRow residual(hidden, first_row < rows);
    grid.arrive();
    if (first_row < rows) residual.fetch(residual_at(first_row), added_norm, next_norm);
    grid.wait();
    for (int row = first_row; row < rows; row += static_cast<int>(gridDim.x)) {
      if (row != first_row) residual.fetch(residual_at(row), added_norm, next_norm);
      residual.add(shared, added.row(row), model.norm_eps);
      normalize(residual, row);
    }
    wait_for_grid();
  };

  for (int row = first_row; row < rows; row += static_cast<int>(gridDim.x)) {
    ResidualRow residual(hidden, true);
    embed(residual, row);
    normalize(residual, row);
    consumer_barrier();  // before the next row's sums take the place of this one's
  }
  wait_for_grid();
  // Attention and MLP are alike: two products with something between them, and the norm of what is added. There is one
  // copy of the code for split products, one for whole ones (a head of another type has one of its own), and one for
  // norms: the instruction cache holds little more than a layer's.
  for (int half = 0;; ++half) {
    const bool is_head = half == 2 * model.layers;
    const bool is_attention = half % 2 == 0;
    const DecodeLayer& layer = model.layer[min(half / 2, model.layers - 1)];
    const auto multiply_normalized = [&]<WeightType kType>(TypeConstant<kType>) {
      const Kind kind = is_head ? Kind::kHead : Kind::kGateUp;
      multiply_whole<kRows, kType>(shared, shape_of(model, kind), normalized, rows, totals, dealer, next_piece,
                                   [&](int row, int output, float2 values) {
                                     if (!is_head) {
                                       *activated.at(row, output) = __float2bfloat16_rn(gelu(values.x) * values.y);
                                       return;
                                     }
                                     float* const out = model.logits + row * model.logits_pitch + output;
                                     out[0] = soft_cap(values.x, model.final_softcap);
                                     if (output + 1 < model.vocab) out[1] = soft_cap(values.y, model.final_softcap);
                                   });
    };
    if (is_head && has_own_head_type<kLayers>(model)) {
      if constexpr (kLayers == WeightType::kQ4) multiply_normalized(TypeConstant<WeightType::kQ8>{});
      return;
    }
    if (is_head || !is_attention) multiply_normalized(TypeConstant<kLayers>{});
    if (is_head) return;
    if (!is_attention) wait_for_grid();
    const CacheLayer cache{layer.is_local != 0, layer.index_in_kind};
    SplitProduct split;
#pragma unroll 1
    for (int second = is_attention ? 0 : 1; second < 2; ++second) {
      const Kind kind = !is_attention ? Kind::kDown : second == 0 ? Kind::kQkv : Kind::kAttentionOut;
      const MatrixShape shape = shape_of(model, kind);
      split = {kind == Kind::kQkv ? model.qkv : model.projected, shape.outputs, model.rows_held,
               shape.pieces_in_tile()};
      // Each member by itself, so that all are in registers.
      const auto of_kind = [&](auto member) {
        return kind == Kind::kQkv ? normalized.*member : kind == Kind::kDown ? activated.*member : attended.*member;
      };
      const FragmentOperand input{of_kind(&FragmentOperand::fragments), of_kind(&FragmentOperand::columns),
                                  of_kind(&FragmentOperand::groups), whole_rows};
      multiply_split<kRows>(shared, shape, input, rows, next_piece, split);
      if (second == 1) break;
      grid.arrive();
      BlockRuns<kKv> runs(model, shared, cache, shares.of(cache));
      grid.wait();
      attend<kKv, kLaneDims>(model, cache, shared, runs, split, CombinedResults<Format, FragmentOperand>{attended},
                             next_piece);
      wait_for_grid();
      if (shares.of(cache).has_short_texts) {
        combine_short_texts(model, shared, cache, rows, attended);
        wait_for_grid();
      }
    }
    const float* const next_norm = is_attention                  ? layer.mlp_norm
                                   : half < 2 * model.layers - 1 ? (&layer)[1].attention_norm
                                                                 : model.final_norm;
    add_and_normalize(split, is_attention ? layer.attention_post_norm : layer.mlp_post_norm, next_norm);
  }
}

template <int kRows, WeightType kLayers>
__host__ __device__ constexpr BlockSizes<StreamFormat<kLayers>> block_sizes(int architecture) {
  const int scratch = panels_held(architecture, kRows) * panel_bytes<kLayers>(kRows) +
                      kConsumerWarps * shared_scales<kLayers, kRows>() * static_cast<int>(sizeof(float4));
  const int least = least_scratch_bytes(architecture, kRows);
  return {scratch > least ? scratch : least, 0, kRows};
}

template <int kRows, int kLaneDims, WeightType kLayers, KvType kKv>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_many_kernel(const __grid_constant__ DecodeModel model, int stages, int tiles_in_group) {
  char* const memory = dynamic_shared_memory();
  using Format = StreamFormat<kLayers>;
  const int rows = *model.row_count;
  constexpr BlockSizes<Format> kSizes = block_sizes<kRows, kLayers>(kArchitecture);
  // A stage is let go by each group of consumers.
  const Shared<Format> shared = set_up_block(model, memory, stages, kSizes, rows, PanelShare<kRows>::kGroups);
  AttentionShares& shares = *reinterpret_cast<AttentionShares*>(shared.rest);
  const Totals totals{reinterpret_cast<float2*>(shared.rest + sizeof(AttentionShares)), tiles_in_group};
  if (threadIdx.x % 32 == 0 && threadIdx.x < 64) {
    const bool is_local = threadIdx.x == 32;
    shares.of_kind[is_local] = share_attention(model, shared, {is_local, 0}, rows);
  }
  __syncthreads();

  if (threadIdx.x >= kConsumers) {
    give_up_registers<40>();
    if constexpr (Format::kProducers == 1) {
      if (threadIdx.x < kConsumers + producer_threads()) produce<kKv>(model, shared, shares, tiles_in_group, 0);
    } else {
      const int index = producer_index<Format>();
      if (index < Format::kProducers) produce<kKv>(model, shared, shares, tiles_in_group, index);
    }
  } else {
    take_registers<232>();
    consume<kRows, kLaneDims, kKv>(model, shared, shares, totals, rows);
  }
}

/// How a block's shared memory is divided.
struct Division {
  int stages, least_stages;
  int gate_up_tiles;  // of a block
  int tiles_in_group;
  int shared_bytes;
};

template <int kRows, WeightType kLayers, KvType kKv>
Division divide_memory(const DecodeModel& model) {
  using Format = StreamFormat<kLayers>;
  const int memory = shared_memory_of_block();
  const int architecture = architecture_of_code();
  constexpr int kTotalBytes = kRows * kPieceRows * 4;  // of a tile
  Division division{};
  division.least_stages =
      least_stages<kKv, Format>(architecture, lane_dims(model.head_dim), model.heads / model.kv_heads);
  const int beside_totals =
      block_sizes<kRows, kLayers>(architecture).fixed_bytes() + static_cast<int>(sizeof(AttentionShares));
  // As many tiles as a block has of gate_up, where a quarter of the memory holds their sums, or what attention leaves.
  const int all_tiles = 2 * model.intermediate / kPieceRows;
  division.gate_up_tiles = (all_tiles + multiprocessors() - 1) / multiprocessors();
  const int left = memory - beside_totals - division.least_stages * Format::kStageBytes;
  division.tiles_in_group = std::max(std::min(division.gate_up_tiles, std::min(memory / 4, left) / kTotalBytes), 1);
  const int fixed = beside_totals + division.tiles_in_group * kTotalBytes;
  division.stages = stages_in<Format>(memory - fixed);
  division.shared_bytes = fixed + division.stages * Format::kStageBytes;
  return division;
}

template <int kRows, int kLaneDims, WeightType kLayers, KvType kKv>
void launch_kernel(const DecodeModel& model, cudaStream_t stream) {
  const Division division = divide_memory<kRows, kLayers, kKv>(model);
  check_stages(division.stages, division.least_stages);
  launch_on_all_multiprocessors(decode_many_kernel<kRows, kLaneDims, kLayers, kKv>, division.shared_bytes, stream,
                                model, division.stages, division.tiles_in_group);
}

template <int kRows, WeightType kLayers, KvType kKv>
void launch_rows(const DecodeModel& model, cudaStream_t stream) {
  if (model.head_dim > 128) {
    launch_kernel<kRows, 8, kLayers, kKv>(model, stream);
  } else if (model.head_dim > 64) {
    launch_kernel<kRows, 4, kLayers, kKv>(model, stream);
  } else {
    launch_kernel<kRows, 2, kLayers, kKv>(model, stream);
  }
}

}  // namespace many

/// The most rows that a launch of decode_many.cu takes, of a model as max_decode_rows() takes it; 0: none. Where memory
/// is short, twice as many rows at once are no gain if the stream comes to a stop for them.
template <WeightType kLayers, KvType kKv>
int most_rows_that_fit(const DecodeModel& model) {
  const auto fits = [](const many::Division& division) { return division.stages >= division.least_stages; };
  const auto serves = [&](const many::Division& division) {
    constexpr int kLeastSpare = 4;
    const bool has_spare = division.stages == kConsumerWarps || division.stages >= kConsumerWarps + kLeastSpare;
    return fits(division) && has_spare && division.tiles_in_group >= std::min(division.gate_up_tiles, kConsumerWarps);
  };
  if (serves(many::divide_memory<64, kLayers, kKv>(model))) return 64;
  if (serves(many::divide_memory<32, kLayers, kKv>(model))) return 32;
  return fits(many::divide_memory<16, kLayers, kKv>(model)) ? 16 : 0;
}

/// launch_decode_many for weights and a cache of these types: decode_many_bf16.cu, decode_many_bf16_kv_q8.cu and so on.
template <WeightType kLayers, KvType kKv>
void launch_decode_many_of(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (rows <= 16) {
    many::launch_rows<16, kLayers, kKv>(model, stream);
  } else if (rows <= 32) {
    many::launch_rows<32, kLayers, kKv>(model, stream);
  } else {
    many::launch_rows<64, kLayers, kKv>(model, stream);
  }
}

}  // namespace gemma
