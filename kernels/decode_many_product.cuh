#pragma once

// Matrix products of 9 to 64 rows with streamed weights, on the tensor cores: each weight is read once for all rows.
//
// So many rows' activations do not fit into shared memory beside the stream. So a block works on panels: one piece of
// 512 columns of many tiles. The rows' activations of these columns lie in shared memory, and each warp multiplies
// whole tiles of the panel by them, for itself: it waits for its own tiles' weights, and no two warps have anything to
// add up. With more than 16 rows the warps make two groups, each for half of the rows, and a warp takes two tiles at
// once, which share what it reads of the rows.
//
// Of packed weights, codes and inputs are multiplied as float16, which holds both exactly: unlike digits, products need
// not be put together, and a code that is unpacked serves all rows of a warp.
//
// The order of sums is that of decode_product.cuh, and so are the bits: what is added up in another order, or by other
// means, are whole numbers.

#include <type_traits>

#include "decode_block.cuh"
#include "decode_digits.cuh"
#include "decode_packed_piece.cuh"
#include "decode_piece.cuh"
#include "decode_product.cuh"
#include "packed_weights.cuh"

namespace gemma {

/// The first of the names of barriers of groups of consumers; stream.cuh has the names before it.
inline constexpr int kFirstGroupBarrier = 3;

/// Tiles of one piece of columns that a block works on one after the other: first_tile, first_tile + tile_step, ...
struct Panel {
  int column;
  int first_tile, tile_step, tiles;
};

/// The panels of a product whose sums over pieces are added up by whoever reads them. All pieces of all tiles, one
/// piece after the other, are shared out evenly; a block reads little of the activations.
class SplitPanels {
 public:
  __device__ explicit SplitPanels(const MatrixShape& matrix) : tiles_(matrix.tiles()) {
    const int grid = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int all = tiles_ * matrix.pieces_in_tile();
    next_ = block * (all / grid) + min(block, all % grid);
    end_ = next_ + all / grid + (block < all % grid ? 1 : 0);
  }

  /// @return whether there was one more
  __device__ bool next(Panel& panel) {
    if (next_ == end_) return false;
    const int tile = next_ % tiles_;
    panel = {next_ / tiles_ * kPieceColumns, tile, 1, min(tiles_ - tile, end_ - next_)};
    next_ += panel.tiles;
    return true;
  }

 private:
  int tiles_;
  int next_, end_;  // among all pieces
};

/// Tiles are dealt out to the blocks of the grid in turn, going on from one product to the next, so that over a layer
/// all blocks stream nearly the same number of bytes.
class TileDealer {
 public:
  /// This block's first tile of the next product, which has `tiles` tiles; the others follow in steps of the grid.
  __device__ int deal(int tiles) {
    const int grid = static_cast<int>(gridDim.x);
    const int first = (static_cast<int>(blockIdx.x) - dealt_ + grid) % grid;
    dealt_ = (dealt_ + tiles) % grid;
    return first;
  }

 private:
  int dealt_ = 0;
};

/// The panels of a product whose sums over pieces are kept in shared memory: the block's own tiles, in groups of at
/// most `tiles_in_group`, of each group all pieces of columns.
template <int kColumns>  // of a piece
class WholePanels {
 public:
  __device__ WholePanels(const MatrixShape& matrix, TileDealer& dealer, int tiles_in_group)
      : first_tile_(dealer.deal(matrix.tiles())), columns_(matrix.columns) {
    const int grid = static_cast<int>(gridDim.x);
    tiles_ = first_tile_ < matrix.tiles() ? (matrix.tiles() - first_tile_ + grid - 1) / grid : 0;
    // Of several groups, so many tiles in each but the last that no warp has less to do than the others.
    in_group_ = tiles_ > tiles_in_group && tiles_in_group > kConsumerWarps
                    ? tiles_in_group / kConsumerWarps * kConsumerWarps
                    : tiles_in_group;
  }

  /// @return whether there was one more
  __device__ bool next(Panel& panel) {
    if (begin_ >= tiles_) return false;
    const int grid = static_cast<int>(gridDim.x);
    panel = {column_, first_tile_ + begin_ * grid, grid, min(in_group_, tiles_ - begin_)};
    column_ += kColumns;
    if (column_ >= columns_) {
      column_ = 0;
      begin_ += in_group_;
    }
    return true;
  }

 private:
  int first_tile_, columns_;
  int tiles_, in_group_;
  int begin_ = 0, column_ = 0;
};

/// A producer's part: copies the panels' weights, of type kType.
/// @param Panels  whose pieces have columns_in_piece<Format, kType>() columns
template <WeightType kType, class Format, class Panels>
__device__ void stream_panels(Producer<Format>& producer, const MatrixShape& shape, const MatrixSource& source,
                              Panels panels) {
  for (Panel panel; panels.next(panel);) {
    if constexpr (kType == WeightType::kBf16) {
      for (int i = 0; i < panel.tiles; ++i)
        producer.copy_weights(shape, source, panel.first_tile + i * panel.tile_step, panel.column);
    } else {
      const int units = units_in_tile(shape.columns);
      const int first = panel.column / kUnitColumns;
      const int bytes = min(columns_in_piece<Format, kType>() / kUnitColumns, units - first) * unit_bytes(kType);
      const auto* const weights = static_cast<const std::byte*>(source.weights);
      for (int i = producer.others(); i < panel.tiles; i += Format::kProducers) {
        const std::size_t tile = static_cast<std::size_t>(panel.first_tile + i * panel.tile_step);
        producer.copy_own(weights + (tile * units + first) * unit_bytes(kType), bytes);
      }
      producer.pass(panel.tiles);
    }
  }
}

/// A product's input in global memory: row tiles of 16, in them fragments of 16 columns, of which each lane has its 16
/// bytes as the tensor cores take them. In bf16, or of normalised rows for packed weights as make_halves_of_units()
/// gives it.
struct FragmentOperand {
  static constexpr int kFragment = kRowsInFragment * 16;

  __nv_bfloat16* fragments;  // [row tiles, columns / 16, kFragment]
  int columns;
  DigitGroup* groups;  // of what is in float16: [columns / 32, rows in whole tiles]; else null
  int rows;            // in whole tiles

  /// Where an element is; columns 2i and 2i + 1 are neighbours.
  __device__ __nv_bfloat16* at(int row, int column) const {
    const int lane = row % 8 * 4 + column % 8 / 2;
    const int in_lane = column / 8 % 2 * 4 + row / 8 % 2 * 2 + column % 2;
    return fragment(row / kRowsInFragment, column / 16) + lane * 8 + in_lane;
  }
  /// Puts a unit of four columns in float16.
  __device__ void put(int row, int unit, const uint2& pairs, const DigitGroup& group) const {
    *reinterpret_cast<std::uint32_t*>(at(row, 4 * unit)) = pairs.x;
    *reinterpret_cast<std::uint32_t*>(at(row, 4 * unit + 2)) = pairs.y;
    if (DigitPlace::is_first(unit)) groups_of(4 * unit)[row] = group;
  }
  /// Of all rows, for the 32 columns that one lies in.
  __device__ DigitGroup* groups_of(int column) const { return groups + column / kDigitColumns * rows; }
  __device__ __nv_bfloat16* fragment(int row_tile, int index) const {
    return fragments + (static_cast<std::size_t>(row_tile) * (columns / 16) + index) * kFragment;
  }
};

/// How the consumers share out a panel: in groups of warps, each with its own rows.
template <int kRows>
struct PanelShare {
  static constexpr int kGroups = kRows > kRowsInFragment ? 2 : 1;
  static constexpr int kWarps = kConsumerWarps / kGroups;  // of a group, as are the next three
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kGroupRows = kRows / kGroups;
  static constexpr int kRowTiles = kGroupRows / kRowsInFragment;
  static constexpr int kTiles = kGroups;  // that a warp multiplies at once
  static_assert(kRowTiles * kRowsInFragment * kGroups == kRows);

  int group, thread, warp, lane;  // thread and warp of the group

  /// @param thread_of_block  thread_index()
  __device__ explicit PanelShare(int thread_of_block)
      : group(thread_of_block / kThreads),
        thread(thread_of_block % kThreads),
        warp(thread_of_block % kThreads / 32),
        lane(thread_of_block % 32) {}

  __device__ int first_row() const { return group * kGroupRows; }
};

/// How many panels' activations shared memory has room for: with two, one is copied while the other is in use.
/// @param rows  that the kernel is for
__host__ __device__ constexpr int panels_held(int architecture, int rows) {
  return rows > 32 || architecture < 900 || is_short_of_memory(architecture) ? 1 : 2;
}

/// Bytes of a panel's activations, of all rows.
template <WeightType kLayers>
__host__ __device__ constexpr int panel_bytes(int rows) {
  const int groups = kLayers == WeightType::kBf16 ? 0 : kPieceSteps * rows * static_cast<int>(sizeof(DigitGroup));
  return rows * kPieceColumns * 2 + groups;
}

/// A group's rows of a panel's activations, in shared memory: in bf16, or in float16 with groups as make_halves() or
/// make_halves_of_units() gives them.
template <int kRows>
struct PanelInput {
  using Share = PanelShare<kRows>;
  static constexpr int kFragments = kPieceColumns / 16;

  uint4* fragments;    // [kRowTiles, kFragments, 32 lanes]
  DigitGroup* groups;  // of whole numbers: [kPieceSteps, kGroupRows]; else not there

  /// @param memory  panel_bytes() of all rows
  __device__ PanelInput(char* memory, const Share& share)
      : fragments(reinterpret_cast<uint4*>(memory) + share.group * (Share::kRowTiles * kFragments * 32)),
        groups(reinterpret_cast<DigitGroup*>(memory + kRows * kPieceColumns * 2) +
               share.group * (kPieceSteps * Share::kGroupRows)) {}

  /// What lane l has of the first 16 columns of a step; 32 behind it, of the others.
  __device__ uint4* step(int row_tile, int step, int lane) const {
    return fragments + (row_tile * kFragments + 2 * step) * 32 + lane;
  }

  /// By all threads of the group: begins to copy the group's rows; of steps that the matrix does not have, zeros. Each
  /// thread then waits for its own copies (copy_async_wait()), and all threads for each other.
  /// @param rows  that there are
  /// @tparam kColumns     of the panel
  /// @tparam kWithGroups  whether the operand's groups are wanted, if it has some
  template <int kColumns, bool kWithGroups>
  __device__ void copy(const FragmentOperand& operand, int rows, int column, const Share& share) const {
    const int steps = min(kColumns, operand.columns - column) / 32;
    each_own<kColumns>(rows, share, [&](int row_tile, int step_index) {
      const int first = share.first_row() / kRowsInFragment + row_tile;
      const bool has_step = step_index < steps;
      const auto* from =
          reinterpret_cast<const uint4*>(operand.fragment(first, (column + (has_step ? 32 * step_index : 0)) / 16)) +
          share.lane;
      uint4* const to = step(row_tile, step_index, share.lane);
      copy_async_16_or_zero(to, from, has_step);
      copy_async_16_or_zero(to + 32, from + 32, has_step);
    });
    if (kWithGroups && operand.groups != nullptr) copy_groups<kColumns>(operand, column, steps, share);
    copy_async_commit();
  }

  /// By all threads of the group, each behind the wait for its own copies: makes whole numbers of what is in bf16.
  template <bool kHasSums>
  __device__ void convert(int rows, const Share& share) const {
    each_own<kPieceColumns>(rows, share, [&](int row_tile, int step_index) {
      uint4* const at = step(row_tile, step_index, share.lane);
      const uint4 first = at[0], others = at[32];
      uint4 upper = {first.x, first.z, others.x, others.z}, lower = {first.y, first.w, others.y, others.w};
      const DigitGroup of_upper = make_halves<kHasSums>(upper), of_lower = make_halves<kHasSums>(lower);
      at[0] = {upper.x, lower.x, upper.y, lower.y};
      at[32] = {upper.z, lower.z, upper.w, lower.w};
      if (share.lane % 4 != 0) return;
      DigitGroup* const to = groups + step_index * Share::kGroupRows + row_tile * kRowsInFragment + share.lane / 4;
      to[0] = of_upper;
      to[8] = of_lower;
    });
  }

 private:
  template <int kColumns>
  __device__ void copy_groups(const FragmentOperand& operand, int column, int steps, const Share& share) const {
    constexpr int kChunk = 16 / sizeof(DigitGroup);
    constexpr int kChunks = Share::kGroupRows / kChunk;  // of a step
    constexpr int kAll = kColumns / 32 * kChunks;
#pragma unroll
    for (int first = 0; first < kAll; first += Share::kThreads) {
      const int i = first + share.thread;
      const int row = i % kChunks * kChunk;
      if (i >= kAll || share.first_row() + row >= operand.rows) continue;
      const bool has_step = i / kChunks < steps;
      copy_async_16_or_zero(groups + i / kChunks * Share::kGroupRows + row,
                            operand.groups_of(column + (has_step ? i / kChunks * 32 : 0)) + share.first_row() + row,
                            has_step);
    }
  }

  /// Calls visit(row tile, step) for the warp's share of all of them.
  template <int kColumns, class Visit>
  __device__ static void each_own(int rows, const Share& share, const Visit& visit) {
    static_assert(kColumns / 32 % Share::kWarps == 0);
#pragma unroll
    for (int row_tile = 0; row_tile < Share::kRowTiles; ++row_tile) {
      if (share.first_row() + row_tile * kRowsInFragment >= rows) return;
#pragma unroll
      for (int first = 0; first < kColumns / 32; first += Share::kWarps) visit(row_tile, first + share.warp);
    }
  }
};

/// Sums of some tiles: of rows g and g + 8 of each row tile, two outputs each.
template <int kTiles, int kRowTiles>
using TileSums = float[kTiles][kRowTiles][4];

template <int kTiles, int kRowTiles>
__device__ void clear_sums(TileSums<kTiles, kRowTiles>& sums) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[tile][r][j] = 0;
    }
  }
}

template <int kTiles, int kRowTiles>
__device__ void add_sums(TileSums<kTiles, kRowTiles>& sums, const TileSums<kTiles, kRowTiles>& others) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[tile][r][j] += others[tile][r][j];
    }
  }
}

/// One warp: puts zeros where a piece of weights in bf16 has columns behind the matrix's, if the copy has not: the copy
/// engine fills up all but half a run of 64.
/// @param columns  that the matrix has of the piece
__device__ inline void fill_up_piece(__nv_bfloat16* piece, int columns) {
  if (columns == kPieceColumns || (kArchitecture >= 900 && columns % 64 == 0)) return;
  const int lane = lane_index();
  for (int column = columns + lane / 8 * 8; column < kPieceColumns; column += 32)
    *reinterpret_cast<uint4*>(piece + swizzled(lane % 8, column)) = make_uint4(0, 0, 0, 0);
  fence_for_async_copies();
  __syncwarp();
}

/// What a lane asks for of some tiles' pieces in bf16: of steps 0 and 1; from each step to the next but one are 64
/// columns.
template <int kTiles>
struct TileWeights {
  const __nv_bfloat16* rows[kTiles][2];
};

/// The product of some tiles' pieces in bf16 and a group's rows: the classes from kFirst on, added up as sum_classes()
/// does it.
template <int kFirst, int kCount, int kTiles, int kRows>
__device__ void multiply_classes(const PanelInput<kRows>& input, const TileWeights<kTiles>& weights, int lane,
                                 TileSums<kTiles, PanelShare<kRows>::kRowTiles>& sums) {
  constexpr int kRowTiles = PanelShare<kRows>::kRowTiles;
  if constexpr (kCount > 1) {
    multiply_classes<kFirst, kCount / 2>(input, weights, lane, sums);
    TileSums<kTiles, kRowTiles> others;
    multiply_classes<kFirst + kCount / 2, kCount / 2>(input, weights, lane, others);
    add_sums<kTiles, kRowTiles>(sums, others);
  } else {
    clear_sums<kTiles, kRowTiles>(sums);  // at first, those of each step's first 16 columns
    TileSums<kTiles, kRowTiles> odd = {};
#pragma unroll
    for (int step = kFirst; step < kPieceSteps; step += kClasses) {
      std::uint32_t b[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        load_matrices(b[tile], weights.rows[tile][step % 2] + step / 2 * swizzled(0, 64));
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const uint4* const at = input.step(r, step, lane);
        const uint4 a = at[0], c = at[32];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          multiply_accumulate(sums[tile][r], a.x, a.y, a.z, a.w, b[tile][0], b[tile][1]);
          multiply_accumulate(odd[tile][r], c.x, c.y, c.z, c.w, b[tile][2], b[tile][3]);
        }
      }
    }
    add_sums<kTiles, kRowTiles>(sums, odd);
  }
}

/// What a warp's tiles are scaled by. In q4, of which it takes 12 instructions to work out, each lane sees to one step
/// of two outputs, and leaves it in shared memory; where there are several tiles to a warp, that is sooner.
template <WeightType kType, int kTiles>
struct TileScales {
  static constexpr bool kAreShared = kType == WeightType::kQ4 && kTiles > 1;

  float4* shared;  // [kTiles, 32]: room of the warp's own
  const std::byte* units[kTiles];

  __device__ void prepare(int lane) {
    if constexpr (kAreShared) {
      __syncwarp();
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const GroupScales<kType> scales = load_scales<kType, kHalfExponent<kType>>(units[tile], lane / 4);
        shared[32 * tile + lane] = {scales.scale.x, scales.scale.y, scales.minimum.x, scales.minimum.y};
      }
      __syncwarp();
    }
  }
  /// Of outputs 2t and 2t + 1. @param step  of the unit
  __device__ GroupScales<kType> of(int tile, int step, int lane) const {
    if constexpr (kAreShared) {
      const float4 scales = shared[32 * tile + 4 * step + lane % 4];
      return {{scales.x, scales.y}, {scales.z, scales.w}};
    } else {
      return load_scales<kType, kHalfExponent<kType>>(units[tile], step);
    }
  }
};

/// Of how many float4 they are, for each warp; they lie behind the panels.
template <WeightType kLayers, int kRows>
__host__ __device__ constexpr int shared_scales() {
  return TileScales<kLayers, PanelShare<kRows>::kTiles>::kAreShared ? 32 * PanelShare<kRows>::kTiles : 0;
}

/// The product of some tiles' packed pieces and a group's rows.
/// @param pieces   in their stages
/// @param columns  that the matrix has of them
/// @param room     of TileScales
/// @tparam kHasScales  whether the inputs' groups may have other scales than 1
template <WeightType kType, int kUnits, bool kHasScales, int kTiles, int kRows>
__device__ void multiply_packed_tiles(const PanelInput<kRows>& input, const std::byte* const (&pieces)[kTiles],
                                      int columns, int lane, float4* room,
                                      TileSums<kTiles, PanelShare<kRows>::kRowTiles>& sums) {
  using Share = PanelShare<kRows>;
  constexpr int kRowTiles = Share::kRowTiles;
  constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;
  constexpr int kInHalf = PairedSteps<kUnits>::kInHalf;
  clear_sums<kTiles, kRowTiles>(sums);
  const int halves = kUnits == 2 && columns <= kUnitColumns ? 1 : 2;  // what a stage has behind a unit is no weights
#pragma unroll 1
  for (int half = 0; half < halves; ++half) {
    TileSums<kTiles, kRowTiles> of_class[2] = {};
    const int unit_byte = kUnits == 2 ? half * unit_bytes(kType) : 0;
    TileScales<kType, kTiles> scales{room, {}};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) scales.units[tile] = pieces[tile] + unit_byte;
    scales.prepare(lane);
    const int first = kUnits == 2 ? 0 : half * kInHalf;  // step of the unit
    const uint4* const fragments = input.step(0, half * kInHalf, lane);
    const DigitGroup* const groups = input.groups + half * (kInHalf * Share::kGroupRows) + lane / 4;
#pragma unroll
    for (int load = 0; load < kInHalf / kStepsInLoad; ++load) {
      uint4 codes[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        codes[tile] = load_codes<kType>(scales.units[tile], first / kStepsInLoad + load);
#pragma unroll
      for (int i = 0; i < kStepsInLoad; ++i) {
        const int step = load * kStepsInLoad + i;  // of the half
        std::uint32_t b[kTiles][4];
        GroupScales<kType> of_step[kTiles];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          unpack_halves<kType>(b[tile], codes[tile], i);
          of_step[tile] = scales.of(tile, first + step, lane);
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint4* const at = fragments + (r * PanelInput<kRows>::kFragments + 2 * step) * 32;
          const uint4 a = at[0], c = at[32];
          DigitGroup inputs[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const auto* const group =
                reinterpret_cast<const float2*>(groups + step * Share::kGroupRows + r * kRowsInFragment + 8 * j);
            inputs[j] = {kHasScales ? group->x : 1, kNeedsSums<kType> ? group->y : 0};
          }
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            float of_group[4] = {};
            multiply_accumulate_f16(of_group, a.x, a.y, a.z, a.w, b[tile][0], b[tile][1]);
            multiply_accumulate_f16(of_group, c.x, c.y, c.z, c.w, b[tile][2], b[tile][3]);
            float(&sum)[4] = of_class[step % 2][tile][r];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float2 added = add_group({sum[2 * j], sum[2 * j + 1]}, of_step[tile],
                                             {of_group[2 * j], of_group[2 * j + 1]}, inputs[j]);
              sum[2 * j] = added.x;
              sum[2 * j + 1] = added.y;
            }
          }
        }
      }
    }
    add_sums<kTiles, kRowTiles>(of_class[0], of_class[1]);
    add_sums<kTiles, kRowTiles>(sums, of_class[0]);
  }
}

/// The product of some tiles' pieces and a group's rows, by one warp.
/// @param room  of TileScales
template <WeightType kType, int kUnits, bool kHasScales, int kTiles, int kRows>
__device__ void multiply_tiles(const PanelInput<kRows>& input, void* const (&pieces)[kTiles], int columns, int lane,
                               float4* room, TileSums<kTiles, PanelShare<kRows>::kRowTiles>& sums) {
  if constexpr (kType == WeightType::kBf16) {
    TileWeights<kTiles> weights;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      auto* const piece = static_cast<__nv_bfloat16*>(pieces[tile]);
      fill_up_piece(piece, columns);
      weights.rows[tile][0] = piece + swizzled(lane % 8, 8 * (lane / 8));
      weights.rows[tile][1] = piece + swizzled(lane % 8, 32 + 8 * (lane / 8));
    }
    multiply_classes<0, kClasses>(input, weights, lane, sums);
  } else {
    const std::byte* bytes[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) bytes[tile] = static_cast<const std::byte*>(pieces[tile]);
    multiply_packed_tiles<kType, kUnits, kHasScales>(input, bytes, columns, lane, room, sums);
  }
}

/// A tile's piece of columns.
struct PanelTile {
  int column;
  int tile;      // of the matrix
  int in_panel;  // which one of the panel
};

/// All consumers: multiplies panels of weights of type kType. Calls sink.add(tile, index, sum) with the sum over the
/// panel's columns of row index / 4 and outputs 2 * (index % 4) and 2 * (index % 4) + 1 of the tile: for a tile's place
/// in a panel always in the same thread, by whole warps, and for rows that do not exist, too. If sink.ends(the panel's
/// column), calls sink.finish(tile, index) as well. Between two calls all consumers must meet: a panel's activations
/// lie in the scratch memory.
///
/// There are no branches where tiles are multiplied: one that is missing is another one once more, which nobody adds
/// up. And nothing in the loop may be kept in local memory: beside so much shared memory the L1 cache has no room for
/// it, and a load takes 250 cycles.
///
/// A warp that waits for a stage has consumed the piece kConsumerWarps before, or, of a panel's first tiles, has met
/// the other warps of its group behind all earlier pieces (StreamFormat says why that matters).
/// @tparam kHasScales  of multiply_packed_tiles(); then what the operand has may be in bf16, too
/// @tparam Sink        SplitSink, or alike
template <WeightType kType, int kRows, bool kHasScales, class Format, class Panels, class Sink>
__device__ void multiply_panels(const Shared<Format>& shared, const FragmentOperand& operand, int rows, Panels panels,
                                int& next_piece, const Sink& sink) {
  using Share = PanelShare<kRows>;
  static_assert(Share::kTiles * Share::kWarps == kConsumerWarps);
  constexpr int kRowTiles = Share::kRowTiles;
  constexpr int kColumns = columns_in_piece<Format, kType>();
  constexpr bool kIsPacked = kType != WeightType::kBf16;
  constexpr int kHeld = panels_held(kArchitecture, kRows);
  const Share share(thread_index());
  const auto group_barrier = [] {
    named_barrier<Share::kThreads>(kFirstGroupBarrier + thread_index() / Share::kThreads);
  };
  const Stream<Format>& stream = shared.stream;
  int held = 0;  // which of the panels in shared memory
  const auto input_at = [&](int index) {
    return PanelInput<kRows>(reinterpret_cast<char*>(shared.scratch) + index * panel_bytes<Format::kLayers>(kRows),
                             share);
  };
  float4* const room =
      reinterpret_cast<float4*>(reinterpret_cast<char*>(shared.scratch) + kHeld * panel_bytes<Format::kLayers>(kRows)) +
      thread_index() / 32 * shared_scales<Format::kLayers, kRows>();
  const auto copy = [&](const PanelInput<kRows>& to, int column) {
    to.template copy<kColumns, kHasScales || kNeedsSums<kType>>(operand, rows, column, share);
  };
  Panel next;
  bool has_next = panels.next(next);
  if (has_next) copy(input_at(held), next.column);
  while (has_next) {
    const Panel panel = next;
    const PanelInput<kRows> input = input_at(held);
    has_next = panels.next(next);
    copy_async_wait<0>();
    if constexpr (kIsPacked && kHasScales) {
      if (operand.groups == nullptr) input.template convert<kNeedsSums<kType>>(rows, share);
    }
    group_barrier();
    if constexpr (kHeld == 2) {
      // The one before it is not in use any more.
      held ^= 1;
      if (has_next) copy(input_at(held), next.column);
    }
    const int columns = min(kColumns, operand.columns - panel.column);
    const auto multiply = [&](auto at_once, int first) {
      constexpr int kTiles = decltype(at_once)::value;
      RingPlace places[kTiles];
      void* pieces[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        places[i] = stream.place(next_piece + min(first + i, panel.tiles - 1));
        pieces[i] = stream.memory(places[i].stage);
      }
#pragma unroll
      for (const RingPlace& place : places) barrier_wait(&stream.full[place.stage], place.parity);
      TileSums<kTiles, kRowTiles> sums;
      multiply_tiles<kType, kColumns / kUnitColumns, kHasScales>(input, pieces, columns, share.lane, room, sums);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (share.lane == i && first + i < panel.tiles) barrier_arrive(&stream.empty[places[i].stage]);
      }
      const auto tile_at = [&](int i) {
        return PanelTile{panel.column, panel.first_tile + (first + i) * panel.tile_step, first + i};
      };
      const auto index_at = [&](int j) { return 4 * (share.first_row() + 8 * j) + share.lane; };
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (first + i >= panel.tiles) continue;
#pragma unroll
        for (int j = 0; j < 2 * kRowTiles; ++j) {
          const float(&of_tile)[4] = sums[i][j / 2];
          sink.add(tile_at(i), index_at(j), {of_tile[j % 2 * 2], of_tile[j % 2 * 2 + 1]});
        }
      }
      if (sink.ends(panel.column)) {
#pragma unroll 1
        for (int k = 0; k < 2 * kRowTiles * kTiles; ++k) {
          if (first + k % kTiles < panel.tiles) sink.finish(tile_at(k % kTiles), index_at(k / kTiles));
        }
      }
    };
    // If the last tiles are no more than one for each warp, nobody has two of them. (With bf16 that is slower.)
    constexpr bool kSharesRest = kIsPacked && Share::kTiles > 1;
    const int rest = panel.tiles % (Share::kTiles * Share::kWarps);
    const int whole = kSharesRest && rest <= Share::kWarps ? panel.tiles - rest : panel.tiles;
    for (int first = Share::kTiles * share.warp; first < whole; first += Share::kTiles * Share::kWarps)
      multiply(std::integral_constant<int, Share::kTiles>{}, first);
    if constexpr (kSharesRest) {
      if (whole + share.warp < panel.tiles) multiply(std::integral_constant<int, 1>{}, whole + share.warp);
    }
    next_piece += panel.tiles;
    if constexpr (kHeld == 1) {
      if (!has_next) break;
      group_barrier();
      copy(input, next.column);
    }
  }
}

__device__ inline void add_to(float& sum, float value) { sum += value; }

__device__ inline void add_to(float4& sum, const float4& value) {
  sum = {sum.x + value.x, sum.y + value.y, sum.z + value.z, sum.w + value.w};
}

/// What multiply_split leaves: sums over one piece of columns each, which their readers (or add_up_pieces()) add up in
/// ascending order.
struct SplitProductRow {
  const float* outputs;  // of the first piece
  std::size_t apart;     // from one piece's to the next one's
  int pieces;

  /// As ProductRow::read.
  template <class Value, int kCount>
  __device__ void read(const int (&at)[kCount], Value (&sums)[kCount]) const {
    constexpr int kAtOnce = sizeof(Value) == sizeof(float) ? 8 : 6;  // pieces asked for together
    const std::size_t step = apart / (sizeof(Value) / sizeof(float));
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = Value{};
    for (int first = 0; first < pieces; first += kAtOnce) {
      Value values[kAtOnce][kCount];
#pragma unroll
      for (int piece = 0; piece < kAtOnce; ++piece) {
        const Value* from = reinterpret_cast<const Value*>(outputs) + (first + piece) * step;
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          values[piece][i] = first + piece < pieces && at[i] >= 0 ? __ldcg(from + at[i]) : Value{};
      }
#pragma unroll
      for (int piece = 0; piece < kAtOnce; ++piece) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) add_to(sums[i], values[piece][i]);
      }
    }
  }
};

struct SplitProduct {
  float* rows;  // [pieces, rows_held, width]
  int width;
  int rows_held;
  int pieces;

  __device__ std::size_t apart() const { return static_cast<std::size_t>(rows_held) * width; }
  __device__ SplitProductRow row(int i) const { return {rows + static_cast<std::size_t>(i) * width, apart(), pieces}; }
};

/// From so many pieces on, all blocks add up what one block would read a whole row of, for a norm.
inline constexpr int kManyPieces = 24;

/// All consumers of all blocks: adds up the pieces of a product, in ascending order.
/// @param product  becomes the sum, of one piece; for others behind a grid barrier
/// @param rows     that it has
__device__ inline void add_up_pieces(SplitProduct& product, int rows) {
  constexpr int kAtOnce = 20;  // pieces asked for together
  const int units_in_row = product.width / 4;
  const int units = rows * units_in_row;
  const int threads = static_cast<int>(gridDim.x) * kConsumers;
  const std::size_t apart = product.apart() / 4;
  for (int i = static_cast<int>(blockIdx.x) * kConsumers + thread_index(); i < units; i += threads) {
    float4* const unit = reinterpret_cast<float4*>(product.rows) + i;
    float4 sum = {};
    for (int first = 0; first < product.pieces; first += kAtOnce) {
      float4 values[kAtOnce] = {};
#pragma unroll
      for (int piece = 0; piece < kAtOnce; ++piece) {
        if (first + piece < product.pieces) values[piece] = __ldcg(unit + (first + piece) * apart);
      }
#pragma unroll
      for (const float4& value : values) add_to(sum, value);
    }
    __stcg(unit, sum);
  }
  product.pieces = 1;
}

/// Where the sums of a product are left piece by piece.
struct SplitSink {
  SplitProduct out;
  int outputs, rows;

  /// This and the next two as multiply_panels() calls them.
  __device__ void add(const PanelTile& tile, int index, float2 sum) const {
    const int row = index / 4;
    const int output = tile.tile * kPieceRows + 2 * (index % 4);
    if (row < rows && output < outputs) {
      float* const of_piece = out.rows + tile.column / kPieceColumns * out.apart();
      __stcg(reinterpret_cast<float2*>(of_piece + static_cast<std::size_t>(row) * out.width + output), sum);
    }
  }
  __device__ static constexpr bool ends(int) { return false; }
  __device__ static void finish(const PanelTile&, int) {}
};

/// One product whose sums are left piece by piece.
template <int kRows, class Format>
__device__ void multiply_split(const Shared<Format>& shared, const MatrixShape& matrix, const FragmentOperand& operand,
                               int rows, int& next_piece, const SplitProduct& out) {
  multiply_panels<Format::kLayers, kRows, true>(shared, operand, rows, SplitPanels(matrix), next_piece,
                                                SplitSink{out, matrix.outputs, rows});
}

/// Shared memory for the sums of a group of tiles.
struct Totals {
  float2* sums;  // [tiles, rows, 4]
  int tiles;
};

/// Where the sums of a product are added up over its pieces.
template <int kPairs, class Epilogue>
struct WholeSink {
  float2* totals;   // [tiles, kPairs]
  int last_column;  // a panel from this column on is the last one; may be negative
  bool is_gate_up;
  int rows_in_tile, outputs, rows;
  Epilogue epilogue;

  /// This and the next two as multiply_panels() calls them.
  __device__ void add(const PanelTile& tile, int index, float2 sum) const {
    float2& total = totals[tile.in_panel * kPairs + index];
    const float2 before = tile.column == 0 ? make_float2(0, 0) : total;
    total = {before.x + sum.x, before.y + sum.y};
  }
  /// Whether a panel that begins with this column is the last one.
  __device__ bool ends(int column) const { return column >= last_column; }
  __device__ void finish(const PanelTile& tile, int index) const {
    float2 values = totals[tile.in_panel * kPairs + index];
    int output = 2 * (index % 4);
    if (is_gate_up) {
      // Lanes 0 and 1 of four have two outputs of the gate each, lanes 2 and 3 the same of up: they exchange one.
      const bool has_gate = index % 4 < 2;
      const float other = __shfl_xor_sync(~0u, has_gate ? values.y : values.x, 2);
      values = has_gate ? make_float2(values.x, other) : make_float2(other, values.y);
      output = has_gate ? output : output - 3;
    }
    output += tile.tile * rows_in_tile;
    if (index / 4 < rows && output < outputs) epilogue(index / 4, output, values);
  }
};

/// One product of normalised rows: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls
/// epilogue(row, output, pair of values): outputs 2i and 2i + 1, or of gate_up row i of both.
template <int kRows, WeightType kType, class Format, class Epilogue>
__device__ void multiply_whole(const Shared<Format>& shared, const MatrixShape& matrix, const FragmentOperand& operand,
                               int rows, const Totals& totals, TileDealer& dealer, int& next_piece,
                               const Epilogue& epilogue) {
  constexpr int kColumns = columns_in_piece<Format, kType>();
  const WholeSink<kRows * kPieceRows / 2, Epilogue> sink{totals.sums,
                                                         operand.columns - kColumns,
                                                         matrix.is_gate_up,
                                                         matrix.rows_in_tile(),
                                                         matrix.is_gate_up ? matrix.outputs / 2 : matrix.outputs,
                                                         rows,
                                                         epilogue};
  multiply_panels<kType, kRows, false>(shared, operand, rows, WholePanels<kColumns>(matrix, dealer, totals.tiles),
                                       next_piece, sink);
}

}  // namespace gemma
