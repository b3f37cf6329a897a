#pragma once

// The whole decode step of Gemma 2 in one persistent kernel, from tokens to logits, for up to 8 rows. (For more:
// decode_many.cu.)
//
// Decoding reads every weight once for each step, so it can only be as fast as memory is read. One block runs on each
// multiprocessor. Its producer streams the block's share of all weights, layer after layer, and of the keys and
// values of past positions through a ring of stages in shared memory (stream.cuh); eight consumer warps multiply.
// Between the steps of a layer the blocks meet at a grid barrier: five a layer (seven with more rows than one, eight
// with packed weights; and one more where attention over short texts is put together by all blocks, each a part). The
// stream does not stop at barriers: a ring of 180 KB holds what memory gives in 8 us. Time is lost only where a chain
// of dependencies takes longer than that and the bytes that are used up on the way: from the end of one layer's `down`
// to the next one's `gate_up` four waits for the grid, two norms and attention follow each other.
//
// Arithmetic is the same for one row and for many: decode_product.cuh, decode_attention.cuh and decode_norm.cuh say in
// what order sums are made.
//
// Bytes of a step: all weights once, and the keys and values that the rows' queries see. NOTES.md has the share of an
// H100's bandwidth at which it reads them.

#include <cstddef>
#include <type_traits>

#include "decode.cuh"
#include "decode_attention.cuh"
#include "decode_block.cuh"
#include "decode_clock.cuh"
#include "decode_launch.cuh"
#include "decode_norm.cuh"
#include "decode_product.cuh"
#include "decode_steps.cuh"
#include "stream.cuh"

namespace gemma {

template <int kColumns>
__device__ Slots deal_slots(Dealer& dealer, const MatrixShape& shape) {
  return Slots(dealer.deal_pieces(shape, kColumns), shape.pieces_in_tile(kColumns));
}

// --- the producers: the same order of steps as the consumers', reduced to what they read ---

/// @tparam kType  of the matrix
template <WeightType kType, class Format>
__device__ void stream_matrix(Producer<Format>& producer, const Slots& slots, const MatrixShape& shape,
                              const MatrixSource& source) {
  if constexpr (kType == WeightType::kBf16) {
    for (int part = 0; slots.count() > 0 && part <= slots.last_part(); ++part) {
      const int tile = slots.tile(part);
      int column = slots.first_piece(part) * kPieceColumns;
      for (int slot = slots.begin(part); slot < slots.end(part); ++slot, column += kPieceColumns)
        producer.copy_weights(shape, source, tile, column);
    }
  } else {
    constexpr int kUnits = columns_in_piece<Format, kType>() / kUnitColumns;
    const int units_wide = units_in_tile(shape.columns);
    SlotCursor cursor(slots, producer.others());
    for (; cursor.slot() < slots.count(); cursor.advance(slots, Format::kProducers)) {
      const int unit = cursor.piece() * kUnits;
      const std::size_t offset =
          (static_cast<std::size_t>(slots.tile(cursor.part())) * units_wide + unit) * unit_bytes(kType);
      producer.copy_own(static_cast<const std::byte*>(source.weights) + offset,
                        min(kUnits, units_wide - unit) * unit_bytes(kType));
    }
    producer.pass(slots.count());
  }
}

/// @param index  which of the producers
template <WeightType kHead, KvType kKv, class Format>
__device__ __forceinline__ void produce(const DecodeModel& model, const Shared<Format>& shared, int rows, int index) {
  Producer<Format> producer(shared.stream, index);
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
      stream_keys_and_values<kKv>(model, shared, cache, producer, rows, dealer);
      cache = cache_of(model, product + 4);
    }
    const MatrixShape shape = shape_of(model, kind);
    if (kHead != Format::kLayers && kind == Kind::kHead) {
      stream_matrix<kHead>(producer, deal_slots<columns_in_piece<Format, kHead>()>(dealer, shape), shape, source);
    } else {
      stream_matrix<Format::kLayers>(producer, deal_slots<kPieceColumns>(dealer, shape), shape, source);
    }
  }
}

// --- the consumers ---

/// Whether numbers that blocks pass on are messages (decode_message.cuh): those of a single row, where memory is so
/// busy that a barrier which waits for them takes longer, and where a block has room to keep the residual stream.
template <class Format>
__host__ __device__ constexpr bool sends_messages(int architecture, int rows) {
  return rows == 1 && Format::kSendsMessages && !is_short_of_memory(architecture);
}

/// Whether products take their input in digits, and normalised rows are made of them (decode_digits.cuh).
template <class Format>
inline constexpr bool kTakesDigits = Format::kLayers != WeightType::kBf16;

/// Elements of bf16, or as many bytes of digits, that a block's rows of normalised activations take.
/// (Of a single row in digits, also what attention gives.)
template <class Format>
__host__ __device__ int operand_elements(const DecodeModel& model, int rows) {
  const int hidden = model.hidden, query_size = model.heads * model.head_dim;
  if (kTakesDigits<Format> && rows == 1) return padded_columns(hidden > query_size ? hidden : query_size);
  return rows * operand_pitch(hidden);
}

/// All consumers: copies the rows that normalize() has written to memory to where the next product reads them.
/// @param operand  rows operand_pitch(hidden) apart
__device__ inline void copy_operand(__nv_bfloat16* operand, const __nv_bfloat16* normalized, int rows, int hidden) {
  const int chunks = hidden / 8;  // of 16 bytes in a row
  for (int i = static_cast<int>(threadIdx.x); i < rows * chunks; i += kConsumers) {
    const int row = i / chunks;
    copy_async_16(operand + row * operand_pitch(hidden) + (i - row * chunks) * 8, normalized + 8 * i);
  }
  copy_async_commit();
  copy_async_wait<0>();
}

/// All consumers of all blocks: makes digits of several rows in bf16, in their places. What is made is for others
/// behind a grid barrier.
/// @param operand  [rows, operand.pitch], in global memory
/// @param groups   [rows, operand.pitch / 32], for the rows' groups
template <bool kHasSums>
__device__ void make_digits_of(const Operand& operand, DigitGroup* groups, int rows) {
  const int lanes_in_row = operand.pitch / 8;  // with 16 bytes each
  const int lanes = rows * lanes_in_row;
  const int threads = static_cast<int>(gridDim.x) * kConsumers;
  // Warps stay together; a row's columns are whole groups of four lanes.
  for (int first = static_cast<int>(blockIdx.x) * kConsumers; first < lanes; first += threads) {
    const int i = first + thread_index();
    const bool is_there = i < lanes;
    auto* const at = reinterpret_cast<uint4*>(operand.rows) + (is_there ? i : 0);
    uint4 step = __ldcg(at);
    const DigitGroup group = make_digits<kHasSums>(step);
    if (!is_there) continue;
    __stcg(at, step);
    if (i % 4 == 0) groups[i / 4] = group;
  }
}

template <int kRows, int kLaneDims, WeightType kHead, KvType kKv, class Clock, class Format>
__device__ __forceinline__ void consume(const DecodeModel& model, const Shared<Format>& shared, int rows) {
  const int hidden = model.hidden;
  const int query_size = model.heads * model.head_dim;
  Clock clock(model);
  constexpr bool kIsSent = sends_messages<Format>(kArchitecture, kRows);
  const DecodeMessages& messages = model.messages;
  const unsigned step = kIsSent ? __ldcg(messages.step) : 0;
  unsigned next_tag = first_tag(model, step);  // of the next product; what the last one gave has the tag before
  constexpr unsigned kBarriersOfLayer = 5;
  GridBarrier<!kIsSent> grid(kIsSent ? messages.arrivals : reinterpret_cast<unsigned*>(model.exchange),
                             step * kBarriersOfLayer * static_cast<unsigned>(model.layers) * gridDim.x);
  Carries carries(kIsSent ? messages.carries : model.exchange + kFirstCarry, kRows * kPieceRows, next_tag);
  Dealer dealer;
  int next_piece = 0;
  constexpr bool kHasOtherHead = kHead != Format::kLayers;
  __nv_bfloat16* const operand = reinterpret_cast<__nv_bfloat16*>(shared.rest);
  char* const behind_operand = shared.rest + operand_elements<Format>(model, rows) * 2;
  float* const kept_row = reinterpret_cast<float*>(behind_operand);  // with messages
  const int group_count = hidden / kDigitColumns;                    // of a row in digits
  DigitGroup* const operand_groups = reinterpret_cast<DigitGroup*>(behind_operand);

  if constexpr (kTakesDigits<Format> && kRows == 1) {
    const int steps = operand_elements<Format>(model, rows) / kDigitColumns;
    for (int step = group_count + warp_index(); step < steps; step += kConsumerWarps) {
      operand[step * kDigitColumns + lane_index()] = __float2bfloat16_rn(0.0f);  // digits of as many bytes
      if (lane_index() == 0) operand_groups[step] = {0, 0};
    }
  }

  // Every block has the only row for itself; many rows are normalised by one block each.
  const int own_row = kRows == 1 ? 0 : static_cast<int>(blockIdx.x);
  const bool has_row = kRows == 1 || own_row < rows;
  ResidualRow residual(hidden, has_row);
  const std::size_t offset = static_cast<std::size_t>(own_row) * hidden;
  const auto normalize = [&](int half) {
    if (has_row) {
      if constexpr (kIsSent) {
        if (half > 0) residual.add(shared, MessageRow{messages.projected, next_tag - 1}, model.norm_eps);
      } else {
        if (half > 0) residual.add(shared, ProductRow{model.projected + offset}, model.norm_eps);
      }
      __nv_bfloat16* const to = kRows == 1 ? operand : model.normalized + offset;
      if constexpr (kTakesDigits<Format>) {
        const DigitRow row{reinterpret_cast<std::byte*>(to),
                           kRows == 1 ? operand_groups : model.operand_groups + own_row * group_count};
        residual.normalize_to_digits(
            shared, model.norm_eps,
            [&](int unit, const FourDigits& four, const DigitGroup& group) { row.put(unit, four, group); });
      } else {
        residual.normalize(shared, model.norm_eps, [&](int column) { return to + operand_order(column); });
      }
      if constexpr (kIsSent) residual.keep(kept_row);
      if (!kIsSent && (kRows > 1 || blockIdx.x == 0)) residual.store(model.residual[half % 2] + offset);
    }
    if (kRows > 1) {
      grid.arrive();
      grid.wait();
      copy_operand(operand, model.normalized, rows, hidden);
      if constexpr (kTakesDigits<Format>) {
        for (int i = static_cast<int>(threadIdx.x); i < rows * group_count; i += kConsumers) {
          const float2 group = __ldcg(reinterpret_cast<const float2*>(model.operand_groups) + i);
          operand_groups[i] = {group.x, group.y};
        }
      }
    }
    consumer_barrier();
  };
  const auto deal = [&](Kind kind) {
    const MatrixShape shape = shape_of(model, kind);
    constexpr int kHeadColumns = columns_in_piece<Format, kHead>();
    if (kHasOtherHead && kind == Kind::kHead) return deal_slots<kHeadColumns>(dealer, shape);
    return deal_slots<kPieceColumns>(dealer, shape);
  };
  bool combines_here = false;  // combines_everywhere(), of the layer
  const auto multiply_with = [&](auto type, Kind kind, const Slots& slots) {
    const MatrixShape shape = shape_of(model, kind);
    const unsigned tag = next_tag++;
    const auto input = [&] {
      if constexpr (kIsSent) {
        return RowOperand{operand,
                          kind == Kind::kAttentionOut ? messages.attended
                          : kind == Kind::kDown       ? messages.activated
                                                      : nullptr,
                          tag - 1};
      } else {
        const bool is_normalized = kind != Kind::kAttentionOut && kind != Kind::kDown;
        const Operand rows_of_kind = is_normalized                 ? Operand{operand, operand_pitch(hidden)}
                                     : kind == Kind::kAttentionOut ? Operand{model.attended, query_size}
                                                                   : Operand{model.activated, model.intermediate};
        if constexpr (kTakesDigits<Format> && kRows == 1) {
          const bool are_digits = is_normalized || (kind == Kind::kAttentionOut && combines_here);
          return PackedRowOperand{{reinterpret_cast<std::byte*>(operand), operand_groups},
                                  are_digits ? nullptr : rows_of_kind.rows};
        } else if constexpr (kTakesDigits<Format>) {
          if (kind == Kind::kDown)
            return PackedOperand{rows_of_kind, model.operand_groups, shape.columns / kDigitColumns};
          return PackedOperand{rows_of_kind, is_normalized ? operand_groups : nullptr, group_count};
        } else if constexpr (kRows == 1) {
          return PlainRowOperand{rows_of_kind.rows};
        } else {
          return rows_of_kind;
        }
      }
    }();
    unsigned long long* const sent = kind == Kind::kQkv ? messages.qkv : messages.projected;
    float* out = kind == Kind::kHead ? model.logits : kind == Kind::kQkv ? model.qkv : model.projected;
    const std::size_t pitch = kind == Kind::kHead ? model.logits_pitch : static_cast<std::size_t>(shape.outputs);
    const auto finish = [&](int row, int output, float2 values) {
      if (kind == Kind::kGateUp) {
        const float activation = gelu(values.x) * values.y;
        if constexpr (kIsSent) {
          store_relaxed(messages.activated + operand_order(output), short_message(activation, tag));
        } else {
          const std::size_t at = row * static_cast<std::size_t>(model.intermediate);
          model.activated[at + operand_order(output)] = __float2bfloat16_rn(activation);
        }
        return;
      }
      if (kIsSent && kind != Kind::kHead) {
        send(sent + output, values, tag);
        return;
      }
      if (kind == Kind::kHead) {
        values = {soft_cap(values.x, model.final_softcap), soft_cap(values.y, model.final_softcap)};
      }
      float* to = out + row * pitch + output;
      __stcg(to, values.x);
      if (output + 1 < shape.outputs) __stcg(to + 1, values.y);
    };
    multiply<kRows, decltype(type)::value>(shared, shape, slots, input, rows, next_piece, carries, finish);
  };

  if constexpr (kHead == WeightType::kBf16) {
    residual.embed(static_cast<const __nv_bfloat16*>(model.embed) +
                       (has_row ? static_cast<std::size_t>(shared.token[own_row]) * hidden : 0),
                   model.embedding_scale, model.layer[0].attention_norm);
  } else {
    const int token = has_row ? shared.token[own_row] : 0;
    const std::size_t tile_bytes = static_cast<std::size_t>(units_in_tile(hidden)) * unit_bytes(kHead);
    residual.template embed_packed<kHead>(static_cast<const std::byte*>(model.embed) + token / kPieceRows * tile_bytes,
                                          token % kPieceRows, model.embedding_scale, model.layer[0].attention_norm);
  }
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
    BlockRuns<kKv> runs;
    if constexpr (kTakesDigits<Format> && kRows == 1)
      combines_here = combines_everywhere<Format>(model, visible_keys(model, cache, shared.position[0]).blocks());
    const bool are_some_short = has_short_texts(model, shared, cache, rows);
    normalize(half);
    clock.was_busy(is_attention ? DecodePhase::kAttentionNorm : DecodePhase::kMlpNorm);
    if (kHasOtherHead && is_head) break;
#pragma unroll 1
    for (int second = 0; second < 2; ++second) {
      const bool is_second = second == 1;
      if (is_second && is_attention) {
        if constexpr (kIsSent) {
          const unsigned tag = next_tag - 1;
          attend<kKv, kLaneDims>(model, cache, shared, runs, SentProduct{{messages.qkv, tag}}, SentResults{tag},
                                 next_piece);
          combine_slices(model, shared, cache, tag);
        } else {
          const Product qkv{model.qkv, shape_of(model, Kind::kQkv).outputs};
          attend<kKv, kLaneDims>(model, cache, shared, runs, qkv,
                                 CombinedResults<Format, Operand>{Operand{model.attended, query_size}}, next_piece);
        }
        clock.was_busy(DecodePhase::kAttend);
        grid.arrive();
        grid.wait();
        clock.has_waited(DecodePhase::kAttend);
        if constexpr (kTakesDigits<Format> && kRows == 1) {
          if (combines_here) {
            combine_in_digits(model, shared, visible_keys(model, cache, shared.position[0]).blocks(),
                              {reinterpret_cast<std::byte*>(operand), operand_groups});
            consumer_barrier();
          }
        }
        if (!kIsSent && !combines_here && are_some_short) {
          combine_short_texts(model, shared, cache, rows, Operand{model.attended, query_size});
          grid.arrive();
          grid.wait();
        }
      }
      const Kind kind = is_head        ? Kind::kHead
                        : is_attention ? (is_second ? Kind::kAttentionOut : Kind::kQkv)
                                       : (is_second ? Kind::kDown : Kind::kGateUp);
      multiply_with(std::integral_constant<WeightType, Format::kLayers>{}, kind, slots);
      clock.was_busy(phase_of(kind));
      if (is_head) break;
      grid.arrive();
      if (is_second) break;
      if (is_attention) runs = BlockRuns<kKv>(model, shared, cache, rows, dealer);
      slots = deal(is_attention ? Kind::kAttentionOut : Kind::kDown);
      grid.wait();
      if constexpr (kTakesDigits<Format> && kRows > 1) {
        if (!is_attention) {
          make_digits_of<kNeedsSums<Format::kLayers>>(Operand{model.activated, model.intermediate},
                                                      model.operand_groups, rows);
          grid.arrive();
          grid.wait();
        }
      }
      clock.has_waited(phase_of(kind));
    }
    if (is_head) break;
    if constexpr (kIsSent) {
      residual.recall(kept_row, added_norm, next_norm);
    } else {
      residual.fetch(model.residual[half % 2] + offset, added_norm, next_norm);
    }
    if (!is_attention) dealer.begin_layer();
    const bool is_head_next = half == 2 * model.layers - 1;
    slots = deal(is_attention ? Kind::kGateUp : is_head_next ? Kind::kHead : Kind::kQkv);
    grid.wait();
    clock.has_waited(is_attention ? DecodePhase::kAttentionOut : DecodePhase::kDown);
  }
  if constexpr (kHasOtherHead) {
    multiply_with(std::integral_constant<WeightType, kHead>{}, Kind::kHead, slots);
    clock.was_busy(DecodePhase::kLogits);
  }
  clock.stop();
  // All blocks have read it: they have met since.
  if (kIsSent && blockIdx.x == 0 && threadIdx.x == 0) *messages.step = step + 1;
}

template <class Format, int kRows>
__host__ __device__ constexpr BlockSizes<Format> sizes_for(int architecture) {
  return {least_scratch_bytes(architecture, kRows), kRows, kRows};
}

template <int kRows, int kLaneDims, WeightType kLayers, WeightType kHead, KvType kKv, class Clock>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeModel model, int stages) {
  char* const memory = dynamic_shared_memory();
  const int rows = *model.row_count;
  using Format = StreamFormat<kLayers>;
  constexpr BlockSizes<Format> kOwnSizes = sizes_for<Format, kRows>(kArchitecture);
  const Shared<Format> shared = set_up_block(model, memory, stages, kOwnSizes, rows);
  if (threadIdx.x >= kConsumers) {
    give_up_registers<56>();
    const int index = producer_index<Format>();
    if (index < Format::kProducers) produce<kHead, kKv>(model, shared, rows, index);
  } else {
    take_registers<224>();
    consume<kRows, kLaneDims, kHead, kKv, Clock>(model, shared, rows);
  }
}

// --- the host ---

/// Shared memory of a block beside the stages.
template <class Format>
int fixed_bytes(const DecodeModel& model, int rows) {
  const int architecture = architecture_of_code();
  const int elements = operand_elements<Format>(model, rows);
  const int groups = kTakesDigits<Format> ? elements / kDigitColumns : 0;
  const int operand_bytes = elements * 2 + groups * static_cast<int>(sizeof(DigitGroup));
  if (rows > 1) return sizes_for<Format, kFewRows>(architecture).fixed_bytes() + operand_bytes;
  const int row_bytes = sends_messages<Format>(architecture, rows) ? model.hidden * 4 : 0;
  return sizes_for<Format, 1>(architecture).fixed_bytes() + operand_bytes + row_bytes;
}

template <KvType kKv, class Format>
bool few_rows_fit(const DecodeModel& model, int rows) {
  const int stages =
      least_stages<kKv, Format>(architecture_of_code(), lane_dims(model.head_dim), model.heads / model.kv_heads);
  return fixed_bytes<Format>(model, rows) + stages * Format::kStageBytes <= shared_memory_of_block();
}

template <int kRows, int kLaneDims, WeightType kLayers, WeightType kHead, KvType kKv, class Clock>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  using Format = StreamFormat<kLayers>;
  const int fixed = fixed_bytes<Format>(model, rows);
  const int stages = stages_in<Format>(shared_memory_of_block() - fixed);
  check_stages(stages, least_stages<kKv, Format>(architecture_of_code(), kLaneDims, model.heads / model.kv_heads));
  launch_on_all_multiprocessors(decode_kernel<kRows, kLaneDims, kLayers, kHead, kKv, Clock>,
                                fixed + stages * Format::kStageBytes, stream, model, stages);
}

template <int kRows, WeightType kLayers, WeightType kHead, KvType kKv, class Clock = NoClock>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (model.head_dim > 128) {
    launch<kRows, 8, kLayers, kHead, kKv, Clock>(model, rows, stream);
  } else if (model.head_dim > 64) {
    launch<kRows, 4, kLayers, kHead, kKv, Clock>(model, rows, stream);
  } else {
    launch<kRows, 2, kLayers, kHead, kKv, Clock>(model, rows, stream);
  }
}

/// launch_decode_few for weights and a cache of these types.
template <WeightType kLayers, WeightType kHead, KvType kKv>
void launch(const DecodeModel& model, int rows, cudaStream_t stream) {
  if (rows == 1) {
    launch<1, kLayers, kHead, kKv>(model, rows, stream);
  } else {
    launch<kFewRows, kLayers, kHead, kKv>(model, rows, stream);
  }
}

}  // namespace gemma
