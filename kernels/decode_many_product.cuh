#pragma once

// Matrix products of 9 to 64 rows with streamed weights, on the tensor cores: each weight is read once for all rows.
//
// So many rows' activations fit neither into shared memory beside the stream, nor could they be read from there for
// every tile in the time that the tile's weights take to arrive. So a block works on panels: one piece of 512 columns
// of many tiles, one tile after the other. The eight warps hold the rows' activations of these columns in registers,
// each two of the eight step classes of half the rows (or one of all, if they are no more than 16); each multiplies
// every tile of the panel by what it holds. What the classes give is added up through shared memory.
//
// Packed weights cost more to make an operand of than to multiply by, so there each warp has one step class of all
// rows: every weight is unpacked once.
//
// The order of sums is that of decode_product.cuh, and so are the bits.

#include "decode_block.cuh"
#include "decode_packed_piece.cuh"
#include "decode_product.cuh"
#include "packed_weights.cuh"

namespace gemma {

/// Tiles that are multiplied between two barriers.
inline constexpr int kTilesAtOnce = 2;
static_assert(kTilesAtOnce <= StreamFormat<WeightType::kBf16>::kMinStages && kTilesAtOnce <= kConsumerWarps);

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
    groups_ = (tiles_ + tiles_in_group - 1) / tiles_in_group;
  }

  /// @return whether there was one more
  __device__ bool next(Panel& panel) {
    if (group_ == groups_) return false;
    const int grid = static_cast<int>(gridDim.x);
    const int begin = tiles_ * group_ / groups_;
    const int end = tiles_ * (group_ + 1) / groups_;
    panel = {column_, first_tile_ + begin * grid, grid, end - begin};
    column_ += kColumns;
    if (column_ >= columns_) {
      column_ = 0;
      ++group_;
    }
    return true;
  }

 private:
  int first_tile_, columns_;
  int tiles_, groups_;
  int group_ = 0, column_ = 0;
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
/// bytes as the tensor cores take them. In digits, two fragments have the upper and the lower digits of 32 columns.
struct FragmentOperand {
  static constexpr int kFragment = kRowsInFragment * 16;

  __nv_bfloat16* fragments;  // [row tiles, columns / 16, kFragment]
  int columns;
  DigitGroup* groups;  // of what is in digits: [rows, columns / 32]; else null

  /// Where an element is; columns 2i and 2i + 1 are neighbours.
  __device__ __nv_bfloat16* at(int row, int column) const {
    const int lane = row % 8 * 4 + column % 8 / 2;
    const int in_lane = column / 8 % 2 * 4 + row / 8 % 2 * 2 + column % 2;
    return fragment(row / kRowsInFragment, column / 16) + lane * 8 + in_lane;
  }
  /// Puts a unit of four columns, as exchange_digits() gives it.
  __device__ void put(int row, int unit, const FourDigits& four, const DigitGroup& group) const {
    const DigitPlace place(unit);
    auto* const to =
        reinterpret_cast<std::uint32_t*>(fragment(row / kRowsInFragment, place.step * (kDigitColumns / 16))) +
        (row % 8 * 4 + place.lane) * 4 + place.half * 2 + row / 8 % 2;
    to[0] = four.upper;
    to[kFragment / 2] = four.lower;
    if (DigitPlace::is_first(unit)) *group_at(row, 4 * unit) = group;
  }
  __device__ DigitGroup* group_at(int row, int column) const {
    return groups + row * (columns / kDigitColumns) + column / kDigitColumns;
  }
  __device__ __nv_bfloat16* fragment(int row_tile, int index) const {
    return fragments + (static_cast<std::size_t>(row_tile) * (columns / 16) + index) * kFragment;
  }
};

__device__ inline float2 sum_of(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }

/// What one warp holds of the activations while a panel's weights in bf16 stream past it: of half the rows, in tiles of
/// 16, the columns of two step classes; or of 16 rows those of one.
template <int kRows>
class HeldOperand {
 public:
  static constexpr int kHeldClasses = kRows > kRowsInFragment ? 2 : 1;
  static constexpr int kParts = kClasses / kHeldClasses;  // sums of a tile, which are added up
  static constexpr int kRowTiles = kRows / kRowsInFragment / kHeldClasses;
  static_assert(kRowTiles * kHeldClasses * kRowsInFragment == kRows && kParts * kHeldClasses == kConsumerWarps);
  static constexpr bool kFitsTwice = kRowTiles == 1;  // into a thread's registers

  /// Asks for the panel's columns of the operand.
  __device__ void fetch(const FragmentOperand& operand, int rows, int column) {
    steps_ = min(kPieceColumns, operand.columns - column) / 32;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      // What is read instead of rows and steps that do not exist is not used.
      const int row_tile = first_row(tile) < rows ? first_row(tile) / kRowsInFragment : 0;
#pragma unroll
      for (int i = 0; i < kHeldSteps; ++i) {
        const auto* fragments = reinterpret_cast<const uint4*>(
            operand.fragment(row_tile, (column + (step(i) < steps_ ? 32 * step(i) : 0)) / 16));
        even_[tile][i] = __ldcg(fragments + lane_index());
        odd_[tile][i] = __ldcg(fragments + FragmentOperand::kFragment / 8 + lane_index());
      }
    }
  }

  /// The first row of a row tile of this warp.
  __device__ static int first_row(int tile) { return kRowsInFragment * (warp_index() / kParts + kHeldClasses * tile); }
  /// Which of a tile's sums this warp makes: of the classes from kHeldClasses times this on.
  __device__ static int part() { return warp_index() % kParts; }

  /// Makes ready what was fetched.
  __device__ void prepare() {}

  /// Multiplies a tile's piece of weights. `sums` are laid out as the tensor cores leave them.
  __device__ void multiply(const __nv_bfloat16* weights, float (&sums)[kRowTiles][4]) const {
    if (steps_ == kPieceColumns / 32) {
      multiply_steps<true>(weights, sums);
    } else {
      multiply_steps<false>(weights, sums);
    }
  }

 private:
  static constexpr int kHeldSteps = 2 * kHeldClasses;  // the first step of each class, then the second of each

  __device__ static int step(int i) { return kHeldClasses * part() + i % kHeldClasses + kClasses * (i / kHeldClasses); }

  template <bool kIsFull>
  __device__ void multiply_steps(const __nv_bfloat16* weights, float (&sums)[kRowTiles][4]) const {
    float even[kHeldClasses][kRowTiles][4] = {}, odd[kHeldClasses][kRowTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kHeldSteps; ++i) {
      if (!kIsFull && step(i) >= steps_) continue;
      std::uint32_t b[4];
      load_weights(b, weights, step(i));
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const uint4& a = even_[tile][i];
        multiply_accumulate(even[i % kHeldClasses][tile], a.x, a.y, a.z, a.w, b[0], b[1]);
        const uint4& c = odd_[tile][i];
        multiply_accumulate(odd[i % kHeldClasses][tile], c.x, c.y, c.z, c.w, b[2], b[3]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[tile][j] = even[0][tile][j] + odd[0][tile][j];
        if constexpr (kHeldClasses == 2) sums[tile][j] += even[1][tile][j] + odd[1][tile][j];
      }
    }
  }

  int steps_;
  uint4 even_[kRowTiles][kHeldSteps], odd_[kRowTiles][kHeldSteps];  // the first 16 columns of a step, and the others
};

/// The codes that a lane has of one step, as those of the first step that unpack_step() takes.
template <WeightType kType>
__device__ inline uint4 load_codes_of_step(const std::byte* unit, int step) {
  const int lane = lane_index();
  const std::byte* from = unit + code_byte<kType>(lane / 4, kGroupColumns * step + 2 * (lane % 4));
  if constexpr (kType == WeightType::kQ8) {
    const uint2 codes = *reinterpret_cast<const uint2*>(from);
    return {codes.x, codes.y, 0, 0};
  } else {
    return {*reinterpret_cast<const std::uint32_t*>(from), 0, 0, 0};
  }
}

/// What one warp holds of the activations while a panel's packed weights stream past it: of all rows, in tiles of 16,
/// the columns of one step class, in digits.
template <WeightType kType, int kUnits, int kRows>
class HeldClass {
 public:
  static constexpr int kRowTiles = kRows / kRowsInFragment;
  static constexpr bool kFitsTwice = kRows <= 32;  // into a thread's registers
  static constexpr int kParts = kClasses;

  __device__ void fetch(const FragmentOperand& operand, int rows, int column) {
    steps_ = min(kUnits * kUnitColumns, operand.columns - column) / kGroupColumns;
    are_digits_ = operand.groups != nullptr;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      // What is read instead of rows and steps that do not exist is not used.
      const int row_tile = kRowsInFragment * tile < rows ? tile : 0;
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const int first = column + (has_step(i) ? kGroupColumns * step(i) : 0);
        const auto* fragments = reinterpret_cast<const uint4*>(operand.fragment(row_tile, first / 16));
        first_[tile][i] = __ldcg(fragments + lane_index());
        second_[tile][i] = __ldcg(fragments + FragmentOperand::kFragment / 8 + lane_index());
        if (are_digits_) {
          const int row = row_tile * kRowsInFragment + lane_index() / 4;
          const auto group = [&](int of_row) {
            const float2 both = __ldcg(reinterpret_cast<const float2*>(operand.group_at(of_row, first)));
            return DigitGroup{both.x, both.y};
          };
          groups_[tile][i][0] = group(row);
          groups_[tile][i][1] = group(row + 8);
        }
      }
    }
  }

  /// Makes digits of what was fetched, if it is in bf16.
  __device__ void prepare() {
    if (are_digits_) return;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        uint4& first = first_[tile][i];
        uint4& second = second_[tile][i];
        uint4 rows[2] = {{first.x, first.z, second.x, second.z}, {first.y, first.w, second.y, second.w}};
#pragma unroll
        for (int j = 0; j < 2; ++j) groups_[tile][i][j] = make_digits<kNeedsSums<kType>>(rows[j]);
        first = {rows[0].x, rows[1].x, rows[0].y, rows[1].y};
        second = {rows[0].z, rows[1].z, rows[0].w, rows[1].w};
      }
    }
  }

  /// Multiplies a round's tiles, whose pieces come next in the stream, and leaves this warp's part of their sums.
  /// @param scratch  [kTilesAtOnce, kParts, kRows * kPieceRows / 2]
  template <class Format>
  __device__ void multiply_tiles(const Stream<Format>& stream, RingPlace& place, int tiles, float2* scratch) const {
    const std::byte* pieces[kTilesAtOnce];
#pragma unroll
    for (int j = 0; j < kTilesAtOnce; ++j) {
      if (j >= tiles) continue;
      barrier_wait(&stream.full[place.stage], place.parity);
      pieces[j] = reinterpret_cast<const std::byte*>(stream.memory(place.stage));
      place.advance(stream.stages);
    }
    if (tiles == kTilesAtOnce && steps_ == kUnits * kUnitSteps) {
      multiply_pieces<kTilesAtOnce, true>(pieces, scratch);
    } else {
#pragma unroll 1
      for (int j = 0; j < tiles; ++j) {
        const std::byte* const piece[1] = {j == 0 ? pieces[0] : pieces[kTilesAtOnce - 1]};
        multiply_pieces<1, false>(piece, scratch + j * kTilePairs);
      }
    }
  }

 private:
  static constexpr int kPairs = kRows * kPieceRows / 2;
  static constexpr int kTilePairs = kParts * kPairs;
  static_assert(kTilesAtOnce <= 2);

  __device__ static int step(int unit) { return warp_index() + kUnitSteps * unit; }
  __device__ bool has_step(int unit) const { return step(unit) < steps_; }

  struct TwoRows {
    float2 upper = {0, 0}, lower = {0, 0};  // g and g + 8
  };
  /// Adds a step's part to the sums of a row tile.
  /// @param b       codes of the step
  /// @param scales  of them
  __device__ void add_step(TwoRows& rows, int tile, int unit, const std::uint32_t (&b)[2],
                           const GroupScales<kType>& scales) const {
    const DigitSums sums = multiply_digits(first_[tile][unit], second_[tile][unit], b);
    rows.upper = add_group(rows.upper, scales, sums.upper, groups_[tile][unit][0]);
    rows.lower = add_group(rows.lower, scales, sums.lower, groups_[tile][unit][1]);
  }

  /// @param kAreFull  whether the pieces have all steps
  template <int kTiles, bool kAreFull>
  __device__ void multiply_pieces(const std::byte* const (&pieces)[kTiles], float2* scratch) const {
    // All loads come before the first sums are stored.
    uint4 codes[kTiles][kUnits];
    GroupScales<kType> scales[kTiles][kUnits];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (!kAreFull && !has_step(i)) continue;
        const std::byte* const unit = pieces[j] + i * unit_bytes(kType);
        codes[j][i] = load_codes_of_step<kType>(unit, warp_index());
        scales[j][i] = load_scales<kType>(unit, warp_index());
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      TwoRows sums[kRowTiles];
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (!kAreFull && !has_step(i)) continue;
        std::uint32_t b[2];
        unpack_step<kType>(b, codes[j][i], 0);
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) add_step(sums[tile], tile, i, b, scales[j][i]);
      }
      float2* const to = scratch + j * kTilePairs + warp_index() * kPairs + lane_index();
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        to[4 * kRowsInFragment * tile] = sums[tile].upper;
        to[4 * (kRowsInFragment * tile + 8)] = sums[tile].lower;
      }
    }
  }

  int steps_;
  bool are_digits_;  // what was fetched
  // Of a step the upper digits, and the lower ones; as fetched in bf16, the first 16 columns, and the others.
  uint4 first_[kRowTiles][kUnits], second_[kRowTiles][kUnits];
  DigitGroup groups_[kRowTiles][kUnits][2];  // of rows g and g + 8
};

/// What a warp holds of a panel of weights of type kType.
template <WeightType kType, int kColumns, int kRows>
struct HeldFor {
  using Type = HeldClass<kType, kColumns / kUnitColumns, kRows>;
};
template <int kColumns, int kRows>
struct HeldFor<WeightType::kBf16, kColumns, kRows> {
  using Type = HeldOperand<kRows>;
};

/// Where the consumers are in the stream and in the scratch memory.
struct Progress {
  int next_piece = 0;
  int turn = 0;                   // which half of the scratch memory is written next
  bool has_whole_scratch = true;  // or only half of it
};

/// Bytes of half of the scratch memory that multiply_panels needs.
__host__ __device__ constexpr int panel_scratch_bytes(WeightType type, int rows) {
  const int parts = type == WeightType::kBf16 && rows > kRowsInFragment ? HeldOperand<32>::kParts : kClasses;
  return kTilesAtOnce * parts * rows * kPieceRows * 4;
}

/// Adds up sums, neighbours first.
template <int kCount>
__device__ float add_up(const float2* sums, float float2::*element) {
  if constexpr (kCount == 1) {
    return sums->*element;
  } else {
    return add_up<kCount / 2>(sums, element) + add_up<kCount / 2>(sums + kCount / 2, element);
  }
}

/// All consumers: multiplies panels. Calls done(panel, tile of the panel, index, sum) with the sum over the panel's
/// columns of row index / 4 and outputs 2 * (index % 4) and 2 * (index % 4) + 1 of the tile: in panels of as many tiles
/// always in the same thread, by whole warps, and for rows that do not exist, too.
template <class Held, int kRows, class Format, class Panels, class Done>
__device__ void multiply_panels(const Shared<Format>& shared, const FragmentOperand& operand, int rows, Panels panels,
                                Progress& progress, const Done& done) {
  constexpr int kPairs = kRows * kPieceRows / 2;
  const bool has_whole_scratch = Format::kLayers == WeightType::kBf16 || progress.has_whole_scratch;
  const int lane = lane_index();
  const Stream<Format>& stream = shared.stream;
  Panel panel;
  if (!panels.next(panel)) return;
  Held held;
  held.fetch(operand, rows, panel.column);
  RingPlace place = stream.place(progress.next_piece);

  for (bool has_next = true; has_next;) {
    Panel next = panel;
    has_next = panels.next(next);
    Held next_held = held;
    // Where registers suffice, the next panel's activations are on their way while this one's are multiplied.
    if (Held::kFitsTwice && has_next) next_held.fetch(operand, rows, next.column);
    held.prepare();
    progress.next_piece += panel.tiles;

    for (int first = 0; first < panel.tiles; first += kTilesAtOnce) {
      const int tiles = min(kTilesAtOnce, panel.tiles - first);
      // What is added up behind the barrier is only overwritten behind the next one.
      float2* const scratch = reinterpret_cast<float2*>(shared.scratch) +
                              static_cast<std::size_t>(progress.turn) * kTilesAtOnce * Held::kParts * kPairs;
      if (has_whole_scratch) progress.turn ^= 1;
      int own_stage = place.stage + warp_index();  // which this warp lets go
      if (own_stage >= stream.stages) own_stage -= stream.stages;
      if constexpr (Format::kLayers == WeightType::kBf16) {
#pragma unroll
        for (int j = 0; j < kTilesAtOnce; ++j) {
          if (j >= tiles) continue;
          barrier_wait(&stream.full[place.stage], place.parity);
          float sums[Held::kRowTiles][4];
          held.multiply(stream.memory(place.stage), sums);
          place.advance(stream.stages);
          float2* const to = scratch + (j * Held::kParts + Held::part()) * kPairs + lane;
#pragma unroll
          for (int tile = 0; tile < Held::kRowTiles; ++tile) {
            to[4 * Held::first_row(tile)] = make_float2(sums[tile][0], sums[tile][1]);
            to[4 * (Held::first_row(tile) + 8)] = make_float2(sums[tile][2], sums[tile][3]);
          }
        }
      } else {
        held.multiply_tiles(stream, place, tiles, scratch);
        // Else they are at least on their way while the last sums are added up.
        const bool is_last = first + kTilesAtOnce >= panel.tiles;
        if (!Held::kFitsTwice && is_last && has_next) held.fetch(operand, rows, next.column);
      }
      consumer_barrier();
      if (lane == 0 && warp_index() < tiles) barrier_arrive(&stream.empty[own_stage]);
#pragma unroll
      for (int k = 0; k < (kTilesAtOnce * kPairs + kConsumers - 1) / kConsumers; ++k) {
        const int i = static_cast<int>(threadIdx.x) + k * kConsumers;
        const int j = i / kPairs;
        if (j >= tiles) continue;
        const float2* part = scratch + j * Held::kParts * kPairs + i % kPairs;
        float2 sums[Held::kParts];
#pragma unroll
        for (int c = 0; c < Held::kParts; ++c) sums[c] = part[c * kPairs];
        done(panel, first + j, i % kPairs,
             make_float2(add_up<Held::kParts>(sums, &float2::x), add_up<Held::kParts>(sums, &float2::y)));
      }
      if (!has_whole_scratch) consumer_barrier();
    }
    if (Held::kFitsTwice) {
      held = next_held;
    } else if (has_next && Format::kLayers == WeightType::kBf16) {
      held.fetch(operand, rows, next.column);
    }
    panel = next;
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

/// One product whose sums are left piece by piece.
template <int kRows, class Format>
__device__ void multiply_split(const Shared<Format>& shared, const MatrixShape& matrix, const FragmentOperand& operand,
                               int rows, Progress& progress, const SplitProduct& out) {
  const int outputs = matrix.outputs;
  using Held = typename HeldFor<Format::kLayers, kPieceColumns, kRows>::Type;
  multiply_panels<Held, kRows>(
      shared, operand, rows, SplitPanels(matrix), progress, [&](const Panel& panel, int tile, int index, float2 sum) {
        const int row = index / 4;
        const int output = (panel.first_tile + tile) * kPieceRows + 2 * (index % 4);
        if (row >= rows || output >= outputs) return;
        float* const of_piece = out.rows + panel.column / kPieceColumns * out.apart();
        __stcg(reinterpret_cast<float2*>(of_piece + static_cast<std::size_t>(row) * out.width + output), sum);
      });
}

/// Shared memory for the sums of a group of tiles.
struct Totals {
  float2* sums;  // [tiles, rows, 4]
  int tiles;
};

/// One product of normalised rows: outputs [rows, matrix.outputs] = operand [rows, columns] x weights^T. Calls
/// epilogue(row, output, pair of values): outputs 2i and 2i + 1, or of gate_up row i of both.
template <int kRows, WeightType kType, class Format, class Epilogue>
__device__ void multiply_whole(const Shared<Format>& shared, const MatrixShape& matrix, const FragmentOperand& operand,
                               int rows, const Totals& totals, TileDealer& dealer, Progress& progress,
                               const Epilogue& epilogue) {
  constexpr int kPairs = kRows * kPieceRows / 2;
  const bool is_gate_up = matrix.is_gate_up;
  const int rows_in_tile = matrix.rows_in_tile();
  const int outputs = is_gate_up ? matrix.outputs / 2 : matrix.outputs;
  constexpr int kColumns = columns_in_piece<Format, kType>();
  using Held = typename HeldFor<kType, kColumns, kRows>::Type;
  multiply_panels<Held, kRows>(shared, operand, rows, WholePanels<kColumns>(matrix, dealer, totals.tiles), progress,
                               [&](const Panel& panel, int tile, int index, float2 sum) {
                                 float2* const total = totals.sums + tile * kPairs + index;
                                 float2 values = panel.column == 0 ? make_float2(0, 0) : *total;
                                 values.x += sum.x;
                                 values.y += sum.y;
                                 if (panel.column + kColumns < operand.columns) {
                                   *total = values;
                                   return;
                                 }
                                 int output = 2 * (index % 4);
                                 if (is_gate_up) {
                                   // Lanes 0 and 1 of four have two outputs of the gate each, lanes 2 and 3 the same of
                                   // up: they exchange one.
                                   const bool has_gate = index % 4 < 2;
                                   const float other = __shfl_xor_sync(~0u, has_gate ? values.y : values.x, 2);
                                   values = has_gate ? make_float2(values.x, other) : make_float2(other, values.y);
                                   output = has_gate ? output : output - 3;
                                 }
                                 output += (panel.first_tile + tile * panel.tile_step) * rows_in_tile;
                                 if (index / 4 < rows && output < outputs) epilogue(index / 4, output, values);
                               });
}

}  // namespace gemma
