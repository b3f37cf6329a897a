#pragma once

// The whole decode step of Gemma 2 in one kernel: what the host must hand over. See decode_kernel.cuh and
// decode_many.cu.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

#include "device/device.h"
#include "model/model.h"

namespace gemma {

/// Rows that one launch can decode together; fewer where shared memory is short (max_decode_rows). More rows take more
/// launches; a row's result does not depend on it.
inline constexpr int kDecodeRows = 64;

/// Up to so many rows have their activations in shared memory. More leave their products' sums piece by piece.
inline constexpr int kFewRows = 8;

/// Products' inputs (normalized, attended, activated) have room for whole tiles of so many rows: see decode_product.cuh
/// and decode_many_product.cuh for their order.
inline constexpr int kRowsInFragment = 16;

/// Blocks of 64 keys whose attention is combined at once, and then the results of these groups.
inline constexpr int kBlocksInGroup = 16;

/// A piece of a weight matrix, which is what is copied at once: the 8 rows of a tile by up to 512 columns.
inline constexpr int kPieceRows = 8;
inline constexpr int kPieceColumns = 512;

/// Whether attention over blocks of keys is kept in half precision until it is combined, and not in float32
/// (decode_partials.cuh).
constexpr bool has_short_partials(WeightType layers) { return layers != WeightType::kBf16; }

#ifdef __CUDACC__
#define GEMMA_HOST_DEVICE __host__ __device__
#else
#define GEMMA_HOST_DEVICE
#endif

/// How a weight matrix is cut up: into tiles of 8 outputs, and these into pieces. A tile of gate_up has 4 rows of the
/// gate and the same 4 of up.
struct MatrixShape {
  int outputs;
  int columns;      ///< a multiple of 32
  bool is_gate_up;  ///< all of gate, then all of up

  GEMMA_HOST_DEVICE int rows_in_tile() const { return is_gate_up ? kPieceRows / 2 : kPieceRows; }
  GEMMA_HOST_DEVICE int tiles() const { return (outputs + kPieceRows - 1) / kPieceRows; }
  /// @param piece_columns  of a whole piece: StreamFormat::columns_in_piece()
  GEMMA_HOST_DEVICE int pieces_in_tile(int piece_columns = kPieceColumns) const {
    return (columns + piece_columns - 1) / piece_columns;
  }
};

/// Where a weight matrix is streamed from.
struct MatrixSource {
  const void* weights;     ///< bf16 [outputs, columns], or packed (packed_weights.cuh)
  const void* tensor_map;  ///< of weights in bf16, a CUtensorMap of it in the GPU's memory; for Hopper and newer
};

/// A weight matrix as it is streamed.
struct StreamedMatrix : MatrixShape, MatrixSource {
  GEMMA_HOST_DEVICE const MatrixSource& source() const { return *this; }
};

#undef GEMMA_HOST_DEVICE

/// One layer's weights and where its keys and values lie.
struct DecodeLayer {
  StreamedMatrix qkv;            ///< [(heads + 2 * kv_heads) * head_dim, hidden]
  StreamedMatrix attention_out;  ///< [hidden, heads * head_dim]
  StreamedMatrix gate_up;        ///< [2 * intermediate, hidden]
  StreamedMatrix down;           ///< [hidden, intermediate]
  const float* attention_norm;   ///< [hidden], as are the other norms; the `1 +` is not in them
  const float* attention_post_norm;
  const float* mlp_norm;
  const float* mlp_post_norm;
  int is_local;       ///< a ring, else pages
  int index_in_kind;  ///< among the local, or the global, layers
};

/// Parts of a step that a profile tells apart; those of all layers together.
enum class DecodePhase { kAttentionNorm, kQkv, kAttend, kAttentionOut, kMlpNorm, kGateUp, kDown, kLogits };
inline constexpr int kDecodePhases = 8;

/// Clock cycles of a block's consumers.
struct DecodePhaseCycles {
  long long busy;
  long long waiting;  ///< afterwards, for the other blocks
};

struct DecodeBlockProfile {
  DecodePhaseCycles phases[kDecodePhases];
  long long cycles, nanoseconds;  ///< of the whole step
};

/// What blocks tell each other while they decode a single row, number by number (decode_message.cuh). All of it is zero
/// before the first launch.
struct DecodeMessages {
  unsigned* step;                    ///< number of the step, counted by the kernel
  unsigned* arrivals;                ///< at grid barriers, since the first step
  unsigned long long* carries;       ///< [multiprocessors, kPieceRows]: sums of a tile that goes on in the next block
  unsigned long long* qkv;           ///< [(heads + 2 * kv_heads) * head_dim]
  unsigned long long* partials;      ///< [heads, max_blocks, head_dim]: attention over one block
  unsigned long long* partial_sums;  ///< [heads, max_blocks, 2]: its largest score, and the sum of its exponentials
  unsigned* attended;                ///< [heads * head_dim]: the next product's input
  unsigned long long* projected;     ///< [hidden]
  unsigned* activated;               ///< [intermediate]: the next product's input
};

/// Of 32 inputs that are whole numbers in units of a scale (decode_digits.cuh), or have been multiplied by it.
struct alignas(8) DigitGroup {
  float scale;  ///< 1 if they have
  float sum;    ///< of the inputs as they are rounded, not in units of the scale
};

/// Everything that stays the same from step to step, so that one captured graph serves all positions: sizes, and where
/// things lie. What changes (tokens, positions, page tables, how many rows there are) is behind the pointers.
struct DecodeModel {
  int hidden, intermediate, heads, kv_heads, head_dim,
      vocab;  ///< hidden, intermediate, heads * head_dim: multiples of 32
  int layers, local_layers, global_layers;
  int window;      ///< of local layers
  int ring_slots;  ///< a multiple of 64
  int max_pages;   ///< width of the page table
  int max_blocks;  ///< of 64 keys that a row may see: width of `partials`
  float norm_eps;
  float embedding_scale;
  float query_scale;
  float attention_softcap;  ///< 0: none
  float final_softcap;      ///< 0: none

  const DecodeLayer* layer;  ///< [layers]
  const void* embed;         ///< [vocab, hidden], as MatrixSource::weights
  StreamedMatrix head;       ///< [vocab, hidden]
  const float* final_norm;   ///< [hidden]
  const float2* rope;        ///< [positions, head_dim / 2]: cosine and sine
  void* rings;               ///< bf16 [rings, local_layers, 2, kv_heads, ring_slots, head_dim], or kQ8 (kv_type)
  void* pages;               ///< bf16 [pages, global_layers, 2, kv_heads, 64, head_dim], or kQ8

  const int* row_count;   ///< rows of this launch, 1 to max_decode_rows()
  const int* token;       ///< [rows]
  const int* position;    ///< [rows]
  const int* ring;        ///< [rows]
  const int* page_table;  ///< [rows, max_pages]

  float* residual[2];          ///< [rows, hidden], used in turn
  __nv_bfloat16* normalized;   ///< [rows, hidden]: the next product's input; for more rows than one
  DigitGroup* operand_groups;  ///< [rows, hidden / 32 or intermediate / 32]: of normalized, then of activated, where
                               ///< they are in whole numbers (decode_digits.cuh); of many rows, [hidden / 32, rows]
  int rows_held;               ///< of qkv and projected, which more than kFewRows rows have once for each piece
  float* qkv;                  ///< [rows_held, (heads + 2 * kv_heads) * head_dim] or [pieces of hidden, rows_held, ...]
  void* partials;              ///< [rows, heads, max_blocks, head_dim]: attention over one block, in float32 or half
  float2* partial_sums;        ///< [rows, heads, max_blocks]: its largest score, and the sum of its exponentials
  void* group_partials;        ///< the same for groups of kBlocksInGroup blocks: [rows, heads, max_groups, head_dim]
  float2* group_sums;          ///< [rows, heads, max_groups]
  __nv_bfloat16* attended;     ///< [rows, heads * head_dim]: the next product's input
  float* projected;            ///< [rows_held, hidden] or [pieces of attended or of activated, rows_held, hidden]
  __nv_bfloat16* activated;  ///< [rows, intermediate]: the next product's input; few rows become digits in their places
  float* logits;             ///< [rows, vocab], soft-capped, rows logits_pitch apart
  std::size_t logits_pitch;

  DecodeMessages messages;       ///< of a single row, where the kernel sends them
  unsigned long long* exchange;  ///< [decode_exchange_size()]: what thread blocks tell each other; the launch clears it
  unsigned* block_arrivals;      ///< [rows, kv_heads, max_groups + 1]: zero before the first launch; left zero

  // What kernels are chosen by.
  WeightType layer_type;  ///< of all matrices of the layers
  WeightType head_type;   ///< of embedding and head: layer_type, or kQ8 where that is kQ4
  KvType kv_type;         ///< kBf16, or kQ8

  DecodeBlockProfile* profile;  ///< [multiprocessors]: of launch_decode_profiled alone
};

/// Groups that max_blocks blocks make.
inline int max_groups(int max_blocks) { return (max_blocks + kBlocksInGroup - 1) / kBlocksInGroup; }

/// How many rows one launch can take on the present GPU: 1 to kDecodeRows.
/// @param model  of which hidden, intermediate, heads, kv_heads, head_dim, layer_type and kv_type must be set
/// @throws Error if shared memory is too short for a row, or rows are longer than the kernels can hold.
int max_decode_rows(const DecodeModel& model);

/// Words of 8 bytes that lay_out_messages() deals out, of the present GPU; 0 where no messages are sent.
/// @param model  as for lay_out_messages()
std::size_t decode_messages_size(const DecodeModel& model);

/// Gives DecodeModel::messages their places.
/// @param model   of which max_blocks must be set, and what max_decode_rows() takes
/// @param memory  [decode_messages_size()], aligned to 16 bytes
void lay_out_messages(DecodeModel& model, unsigned long long* memory);

/// Elements that DecodeModel::exchange must have on the present GPU.
std::size_t decode_exchange_size();

/// Runs one decode step for *model.row_count rows, each of another sequence: from tokens to logits, keys and values of
/// the rows' positions appended to the cache.
/// @param rows  *model.row_count: 1 to max_decode_rows(). One row, and up to 8, 16, 32 and 64, have kernels of their
/// own, all of which give a row the same bits.
/// @throws Error if a launch fails.
void launch_decode(const DecodeModel& model, int rows, cudaStream_t stream);

/// The same for one row, with clocks: leaves in model.profile where the blocks' time went. The clocks themselves take a
/// few percent.
/// @throws Error if the launch fails.
void launch_decode_profiled(const DecodeModel& model, cudaStream_t stream);

}  // namespace gemma
