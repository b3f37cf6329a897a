#pragma once

// Matrix products of 9 to 64 rows with streamed weights, on the tensor cores: each weight is read once for all rows.
//
// So many rows' activations fit neither into shared memory beside the stream, nor could they be read from there for
// every tile in the time that the tile's weights take to arrive. So a block works on panels: one piece of 512 columns
// of many tiles, one tile after the other. The eight warps hold the rows' activations of these columns in registers,
// each two of the eight step classes of half the rows (or one of all, if they are no more than 16); each multiplies
// every tile of the panel by what it holds. What the classes give is added up through shared memory, by the four warps
// that have the same rows (or by all eight).
//
// Of packed weights, codes and inputs are multiplied as float16, which holds both exactly: unlike digits, products need
// not be put together, and a code that is unpacked serves all rows of a warp.
//
// The order of sums is that of decode_product.cuh, and so are the bits: what is added up in another order, or by other
// means, are whole numbers.

#include "decode_block.cuh"
#include "decode_digits.cuh"
#include "decode_piece.cuh"
#include "decode_product.cuh"
#include "packed_weights.cuh"

namespace gemma {

/// The first of the names of barriers of groups of consumers; stream.cuh has the names before it.
inline constexpr int kFirstGroupBarrier = 3;

/// Tiles that are multiplied between two barriers.
inline constexpr int kTilesAtOnce = 2;
// They and the next ones are in the stream's memory together.
static_assert(2 * kTilesAtOnce <= StreamFormat<WeightType::kBf16>::kMinStages);

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
/// bytes as the tensor cores take them. In bf16, or for packed weights in whole numbers as float16 (decode_digits.cuh).
struct FragmentOperand {
  static constexpr int kFragment = kRowsInFragment * 16;

  __nv_bfloat16* fragments;  // [row tiles, columns / 16, kFragment]
  int columns;
  DigitGroup* groups;  // of what is in float16: [rows, columns / 32]; else null

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
    if (DigitPlace::is_first(unit)) *group_at(row, 4 * unit) = group;
  }
  __device__ DigitGroup* group_at(int row, int column) const {
    return groups + row * (columns / kDigitColumns) + column / kDigitColumns;
  }
  __device__ __nv_bfloat16* fragment(int row_tile, int index) const {
    return fragments + (static_cast<std::size_t>(row_tile) * (columns / 16) + index) * kFragment;
  }
};

/// Which rows and columns of a panel's activations a warp holds while the panel's weights stream past it: of half the
/// rows, in tiles of 16, the columns of two step classes; or of 16 rows those of one.
template <int kRows>
struct WarpShare {
  static constexpr int kHeldClasses = kRows > kRowsInFragment ? 2 : 1;
  static constexpr int kParts = kClasses / kHeldClasses;   // sums of a tile, which are added up
  static constexpr int kGroups = kConsumerWarps / kParts;  // of warps, each with its own rows
  static constexpr int kRowTiles = kRows / kRowsInFragment / kGroups;
  static_assert(kRowTiles * kGroups * kRowsInFragment == kRows && kParts * kHeldClasses == kConsumerWarps);

  int lane, warp;

  __device__ explicit WarpShare(int thread) : lane(thread % 32), warp(thread / 32) {}

  /// The first row of one of its row tiles.
  __device__ int first_row(int tile) const { return kRows / kGroups * (warp / kParts) + kRowsInFragment * tile; }
  /// The i-th of its steps: the first one of each class, then the second of each.
  __device__ int step(int i) const {
    return kHeldClasses * (warp % kParts) + i % kHeldClasses + kClasses * (i / kHeldClasses);
  }
  /// Leaves this warp's part of a tile's sums.
  /// @param parts  [kParts, kRows * kPieceRows / 2]
  /// @param sums   of rows g and g + 8 of each row tile, two outputs each
  __device__ void store(const float (&sums)[kRowTiles][4], float2* parts) const {
    float2* const to = parts + warp % kParts * (kRows * kPieceRows / 2) + lane;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      to[4 * first_row(tile)] = make_float2(sums[tile][0], sums[tile][1]);
      to[4 * (first_row(tile) + 8)] = make_float2(sums[tile][2], sums[tile][3]);
    }
  }
};

/// What one warp holds of the activations in bf16.
template <int kRows>
class HeldOperand : public WarpShare<kRows> {
 public:
  using Share = WarpShare<kRows>;
  using Share::first_row;
  using Share::kHeldClasses;
  using Share::kRowTiles;
  using Share::lane;
  using Share::step;
  static constexpr int kHeldSteps = 2 * kHeldClasses;

  using Share::Share;

  /// Asks for the panel's columns of the operand.
  __device__ void fetch(const FragmentOperand& operand, int rows, int column) {
    steps_ = min(kPieceColumns, operand.columns - column) / 32;
    is_ragged_ = steps_ < kPieceColumns / 32 && (kArchitecture < 900 || operand.columns % 64 != 0);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      // What is read instead of rows and steps that do not exist is not used, or multiplied by zeros.
      const int row_tile = first_row(tile) < rows ? first_row(tile) / kRowsInFragment : 0;
#pragma unroll
      for (int i = 0; i < kHeldSteps; ++i) {
        const auto* fragments = reinterpret_cast<const uint4*>(
            operand.fragment(row_tile, (column + (step(i) < steps_ ? 32 * step(i) : 0)) / 16));
        even_[tile][i] = __ldcg(fragments + lane);
        odd_[tile][i] = __ldcg(fragments + FragmentOperand::kFragment / 8 + lane);
      }
    }
  }

  /// Makes ready what was fetched.
  __device__ void prepare() {}

  /// What this warp multiplies of a tile's piece of weights.
  struct Weights {
    std::uint32_t steps[kHeldSteps][4];
  };
  /// @param piece  in its stage
  __device__ void load(Weights& weights, const void* piece) const {
    const auto* const elements = static_cast<const __nv_bfloat16*>(piece);
#pragma unroll
    for (int i = 0; i < kHeldClasses; ++i) {
      const __nv_bfloat16* const first = elements + swizzled(lane % 8, 32 * step(i) + 8 * (lane / 8));
      load_matrices(weights.steps[i], first);
      load_matrices(weights.steps[i + kHeldClasses], first + swizzled(0, 32 * kClasses));
    }
  }
  /// Zeros instead of weights that the matrix does not have.
  __device__ void finish_loading(Weights (&weights)[kTilesAtOnce]) const {
    // The copy engine has filled up the stage with zeros, but for half a run of columns.
    if (!is_ragged_) return;
#pragma unroll
    for (Weights& of_tile : weights) {
#pragma unroll
      for (int i = 0; i < kHeldSteps; ++i) {
#pragma unroll
        for (std::uint32_t& two : of_tile.steps[i]) two = step(i) < steps_ ? two : 0;
      }
    }
  }

  /// What the tensor cores give, of each class two chains.
  struct Sums {
    float even[kHeldClasses][kRowTiles][4] = {}, odd[kHeldClasses][kRowTiles][4] = {};
  };
  /// @param sums  zeros before
  __device__ void multiply(const Weights& weights, Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kHeldSteps; ++i) {
      const std::uint32_t(&b)[4] = weights.steps[i];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const uint4& a = even_[tile][i];
        multiply_accumulate(sums.even[i % kHeldClasses][tile], a.x, a.y, a.z, a.w, b[0], b[1]);
        const uint4& c = odd_[tile][i];
        multiply_accumulate(sums.odd[i % kHeldClasses][tile], c.x, c.y, c.z, c.w, b[2], b[3]);
      }
    }
  }

  /// Leaves this warp's part of a tile's sums.
  __device__ void store(const Sums& sums, float2* parts) const {
    float of_tiles[kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        of_tiles[tile][j] = sums.even[0][tile][j] + sums.odd[0][tile][j];
        if constexpr (kHeldClasses == 2) of_tiles[tile][j] += sums.even[1][tile][j] + sums.odd[1][tile][j];
      }
    }
    Share::store(of_tiles, parts);
  }

 private:
  int steps_;
  bool is_ragged_;  // whether a stage may have something else than zeros behind the matrix's columns
  uint4 even_[kRowTiles][kHeldSteps], odd_[kRowTiles][kHeldSteps];  // the first 16 columns of a step, and the others
};

/// The codes that a lane has of one step, as those of the first step that unpack_halves() takes.
template <WeightType kType>
__device__ inline uint4 load_codes_of_step(const std::byte* unit, int lane, int step) {
  const std::byte* from = unit + code_byte<kType>(lane / 4, kGroupColumns * step + 2 * (lane % 4));
  if constexpr (kType == WeightType::kQ8) {
    const uint2 codes = *reinterpret_cast<const uint2*>(from);
    return {codes.x, codes.y, 0, 0};
  } else {
    return {*reinterpret_cast<const std::uint32_t*>(from), 0, 0, 0};
  }
}

/// What one warp holds of the activations for packed weights, in whole numbers as float16.
/// @tparam kConverts  whether what is fetched may be in bf16
template <WeightType kType, int kUnits, int kRows, bool kConverts>
class HeldNumbers : public WarpShare<kRows> {
 public:
  using Share = WarpShare<kRows>;
  using Share::first_row;
  using Share::kHeldClasses;
  using Share::kRowTiles;
  using Share::lane;
  using Share::step;
  static constexpr int kHeldSteps = kUnits * kHeldClasses;

  using Share::Share;

  /// Asks for the panel's columns of the operand.
  __device__ void fetch(const FragmentOperand& operand, int rows, int column) {
    const int steps = min(kUnits * kUnitColumns, operand.columns - column) / kGroupColumns;
    has_second_unit_ = steps > kUnitSteps;
    are_numbers_ = !kConverts || operand.groups != nullptr;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      // What is read instead of rows that do not exist is not used.
      const int row_tile = first_row(tile) < rows ? first_row(tile) / kRowsInFragment : 0;
#pragma unroll
      for (int i = 0; i < kHeldSteps; ++i) {
        even_[tile][i] = odd_[tile][i] = make_uint4(0, 0, 0, 0);
        groups_[tile][i][0] = groups_[tile][i][1] = {0, 0};
        if (step(i) >= steps) continue;
        const int first = column + kGroupColumns * step(i);
        const auto* fragments = reinterpret_cast<const uint4*>(operand.fragment(row_tile, first / 16));
        even_[tile][i] = __ldcg(fragments + lane);
        odd_[tile][i] = __ldcg(fragments + FragmentOperand::kFragment / 8 + lane);
        if (are_numbers_) {
          const int row = row_tile * kRowsInFragment + lane / 4;
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

  /// Makes whole numbers of what was fetched, if it is in bf16.
  __device__ void prepare() {
    if constexpr (kConverts) {
      if (!are_numbers_) convert();
    }
  }

  /// What this warp multiplies of a tile's piece of weights.
  struct Weights {
    uint4 codes[kHeldSteps];
    GroupScales<kType> scales[kHeldSteps];
  };
  /// @param piece  in its stage
  __device__ void load(Weights& weights, const void* piece) const {
#pragma unroll
    for (int i = 0; i < kHeldSteps; ++i) {
      const std::byte* const unit = static_cast<const std::byte*>(piece) + i / kHeldClasses * unit_bytes(kType);
      weights.codes[i] = load_codes_of_step<kType>(unit, lane, step(i) % kUnitSteps);
      weights.scales[i] = load_scales<kType, kHalfExponent<kType>>(unit, step(i) % kUnitSteps);
      // What a stage has behind the last unit is no weights.
      if (i >= kHeldClasses && !has_second_unit_) weights.scales[i] = {};
    }
  }
  __device__ void finish_loading(Weights (&)[kTilesAtOnce]) const {}

  /// Of rows g and g + 8, two outputs each.
  struct Sums {
    float of_class[kHeldClasses][kRowTiles][4] = {};
  };
  /// @param sums  zeros before
  __device__ void multiply(const Weights& weights, Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kHeldSteps; ++i) {
      std::uint32_t b[4];
      unpack_halves<kType>(b, weights.codes[i], 0);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        float of_group[4] = {};
        const uint4 &even = even_[tile][i], &odd = odd_[tile][i];
        multiply_accumulate_f16(of_group, even.x, even.y, even.z, even.w, b[0], b[1]);
        multiply_accumulate_f16(of_group, odd.x, odd.y, odd.z, odd.w, b[2], b[3]);
        float(&sum)[4] = sums.of_class[i % kHeldClasses][tile];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 added = add_group<kType>({sum[2 * j], sum[2 * j + 1]}, weights.scales[i],
                                                {of_group[2 * j], of_group[2 * j + 1]}, groups_[tile][i][j]);
          sum[2 * j] = added.x;
          sum[2 * j + 1] = added.y;
        }
      }
    }
  }

  /// Leaves this warp's part of a tile's sums.
  __device__ void store(const Sums& sums, float2* parts) const {
    float of_tiles[kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        of_tiles[tile][j] = sums.of_class[0][tile][j];
        if constexpr (kHeldClasses == 2) of_tiles[tile][j] += sums.of_class[1][tile][j];
      }
    }
    Share::store(of_tiles, parts);
  }

 private:
  __device__ void convert() {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kHeldSteps; ++i) {
        uint4 &even = even_[tile][i], &odd = odd_[tile][i];
        uint4 rows[2] = {{even.x, even.z, odd.x, odd.z}, {even.y, even.w, odd.y, odd.w}};
#pragma unroll
        for (int j = 0; j < 2; ++j) groups_[tile][i][j] = make_halves<kNeedsSums<kType>>(rows[j]);
        even = {rows[0].x, rows[1].x, rows[0].y, rows[1].y};
        odd = {rows[0].z, rows[1].z, rows[0].w, rows[1].w};
      }
    }
  }

  bool has_second_unit_;
  bool are_numbers_;                                                // what was fetched
  uint4 even_[kRowTiles][kHeldSteps], odd_[kRowTiles][kHeldSteps];  // the first 16 columns of a step, and the others
  DigitGroup groups_[kRowTiles][kHeldSteps][2];                     // of rows g and g + 8
};

/// What a warp holds of a panel of weights of type kType.
/// @tparam kConverts  of HeldNumbers
template <WeightType kType, int kColumns, int kRows, bool kConverts>
struct HeldFor {
  using Type = HeldNumbers<kType, kColumns / kUnitColumns, kRows, kConverts>;
};
template <int kColumns, int kRows, bool kConverts>
struct HeldFor<WeightType::kBf16, kColumns, kRows, kConverts> {
  using Type = HeldOperand<kRows>;
};

/// Bytes of a half of the scratch memory that multiply_panels needs.
template <int kRows>
__host__ __device__ constexpr int panel_scratch_bytes() {
  constexpr int kParts = WarpShare<kRows>::kParts;
  return kTilesAtOnce * kParts * kRows * kPieceRows * 4;
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

/// A tile's piece of columns.
struct PanelTile {
  int column;
  int tile;      // of the matrix
  int in_panel;  // which one of the panel
};

/// All consumers: multiplies panels. Calls sink.add(tile, index, sum) with the sum over the panel's columns of row
/// index / 4 and outputs 2 * (index % 4) and 2 * (index % 4) + 1 of the tile: for a tile's place in a panel always in
/// the same thread, by whole warps, and for rows that do not exist, too. If sink.ends(the panel's column), calls
/// sink.finish(tile, index, what add() has returned) as well. Between two calls all consumers must meet: each call
/// begins with the first half of the scratch memory.
///
/// In rounds of kTilesAtOnce tiles. Each warp leaves its part of their sums in shared memory; behind a barrier of its
/// group, the group's parts are added up. Where there are two groups, one multiplies while the other waits. There are
/// no branches where tiles are multiplied: one that is missing is another one once more, which nobody adds up. And
/// nothing in the loop may be kept in local memory: beside so much shared memory the L1 cache has no room for it, and a
/// load takes 250 cycles. Hence threads are asked for anew (thread_index()), and no panel's activations are fetched
/// while another's are in use.
/// @tparam Held  HeldFor::Type
/// @tparam Sink  SplitSink, or alike
template <class Held, int kRows, class Format, class Panels, class Sink>
__device__ void multiply_panels(const Shared<Format>& shared, const FragmentOperand& operand, int rows, Panels panels,
                                int& next_piece, const Sink& sink) {
  constexpr int kPairs = kRows * kPieceRows / 2;
  constexpr int kPartsOfTile = Held::kParts * kPairs;
  constexpr int kGroupPairs = kPairs / Held::kGroups;
  constexpr int kGroupThreads = kConsumers / Held::kGroups;
  constexpr int kTurns = (kTilesAtOnce * kGroupPairs + kGroupThreads - 1) / kGroupThreads;
  constexpr bool kAllAdd = kTilesAtOnce * kGroupPairs >= kGroupThreads;  // or only some of the threads
  const int thread_of_block = thread_index();
  const int group = thread_of_block / kGroupThreads;
  const int thread = thread_of_block % kGroupThreads;
  const int warp = thread / 32;
  const int first_pair = group * kGroupPairs;
  const auto group_barrier = [] { named_barrier<kGroupThreads>(kFirstGroupBarrier + thread_index() / kGroupThreads); };
  const Stream<Format>& stream = shared.stream;
  Panel next;
  bool has_next = panels.next(next);
  if (!has_next) return;
  Held held(thread_of_block);
  held.fetch(operand, rows, next.column);
  RingPlace place = stream.place(next_piece);

  int turn = 0;  // which half of the scratch memory is written next
  Panel panel{};
  for (int first = 0;; first += kTilesAtOnce) {
    if (first >= panel.tiles) {
      if (!has_next) break;
      panel = next;
      first = 0;
      has_next = panels.next(next);
      held.prepare();
      next_piece += panel.tiles;
    }
    const bool has_second = first + 1 < panel.tiles;
    const RingPlace of_first = place;
    place.advance(stream.stages);
    const RingPlace of_second = has_second ? place : of_first;
    if (has_second) place.advance(stream.stages);
    const bool is_first_full = barrier_test(&stream.full[of_first.stage], of_first.parity);
    const bool is_second_full = barrier_test(&stream.full[of_second.stage], of_second.parity);
    if (!is_first_full || !is_second_full) {
      barrier_wait(&stream.full[of_first.stage], of_first.parity);
      barrier_wait(&stream.full[of_second.stage], of_second.parity);
    }
    typename Held::Weights weights[kTilesAtOnce];
    held.load(weights[0], stream.memory(of_first.stage));
    held.load(weights[1], stream.memory(of_second.stage));
    held.finish_loading(weights);
    // What is added up behind the barrier is only overwritten behind the next one.
    float2* const scratch = reinterpret_cast<float2*>(shared.scratch) + turn * (kTilesAtOnce * kPartsOfTile);
    turn ^= 1;
#pragma unroll
    for (int j = 0; j < kTilesAtOnce; ++j) {
      typename Held::Sums sums;
      held.multiply(weights[j], sums);
      held.store(sums, scratch + j * kPartsOfTile);
    }
    // The next panel's activations are on their way while the last sums are added up.
    if (first + kTilesAtOnce >= panel.tiles && has_next) held.fetch(operand, rows, next.column);
    group_barrier();
    if (thread % 32 == 0 && warp < (has_second ? 2 : 1))
      barrier_arrive(&stream.empty[warp == 0 ? of_first.stage : of_second.stage]);

    if (kAllAdd || thread < kTilesAtOnce * kGroupPairs) {
      float2 values[kTurns];
#pragma unroll
      for (int k = 0; k < kTurns; ++k) {
        const int i = thread + k * kGroupThreads;
        const float2* const part = scratch + i / kGroupPairs * kPartsOfTile + first_pair + i % kGroupPairs;
        float2 parts[Held::kParts];
#pragma unroll
        for (int c = 0; c < Held::kParts; ++c) parts[c] = part[c * kPairs];
        values[k] = {add_up<Held::kParts>(parts, &float2::x), add_up<Held::kParts>(parts, &float2::y)};
      }
      const auto index_of = [&](int k) { return first_pair + (thread + k * kGroupThreads) % kGroupPairs; };
      const auto tile_of = [&](int k) {
        const int in_panel = first + (thread + k * kGroupThreads) / kGroupPairs;
        return PanelTile{panel.column, panel.first_tile + in_panel * panel.tile_step, in_panel};
      };
#pragma unroll
      for (int k = 0; k < kTurns; ++k) {
        const PanelTile tile = tile_of(k);
        if (tile.in_panel < panel.tiles) values[k] = sink.add(tile, index_of(k), values[k]);
      }
      if (sink.ends(panel.column)) {
#pragma unroll 1
        for (int k = 0; k < kTurns; ++k) {
          const PanelTile tile = tile_of(k);
          if (tile.in_panel < panel.tiles) sink.finish(tile, index_of(k), k == 0 ? values[0] : values[kTurns - 1]);
        }
      }
    }
  }
  static_assert(kTurns <= 2 && kTilesAtOnce == 2 && kGroupPairs % 32 == 0);
  static_assert(!kAllAdd || kTurns * kGroupThreads == kTilesAtOnce * kGroupPairs);
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
  __device__ float2 add(const PanelTile& tile, int index, float2 sum) const {
    const int row = index / 4;
    const int output = tile.tile * kPieceRows + 2 * (index % 4);
    if (row < rows && output < outputs) {
      float* const of_piece = out.rows + tile.column / kPieceColumns * out.apart();
      __stcg(reinterpret_cast<float2*>(of_piece + static_cast<std::size_t>(row) * out.width + output), sum);
    }
    return sum;
  }
  __device__ static constexpr bool ends(int) { return false; }
  __device__ static void finish(const PanelTile&, int, float2) {}
};

/// One product whose sums are left piece by piece.
template <int kRows, class Format>
__device__ void multiply_split(const Shared<Format>& shared, const MatrixShape& matrix, const FragmentOperand& operand,
                               int rows, int& next_piece, const SplitProduct& out) {
  using Held = typename HeldFor<Format::kLayers, kPieceColumns, kRows, true>::Type;
  multiply_panels<Held, kRows>(shared, operand, rows, SplitPanels(matrix), next_piece,
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
  __device__ float2 add(const PanelTile& tile, int index, float2 sum) const {
    float2* const total = totals + tile.in_panel * kPairs + index;
    float2 values = tile.column == 0 ? make_float2(0, 0) : *total;
    values.x += sum.x;
    values.y += sum.y;
    if (tile.column < last_column) *total = values;
    return values;
  }
  /// Whether a panel that begins with this column is the last one.
  __device__ bool ends(int column) const { return column >= last_column; }
  __device__ void finish(const PanelTile& tile, int index, float2 values) const {
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
  using Held = typename HeldFor<kType, kColumns, kRows, false>::Type;
  multiply_panels<Held, kRows>(shared, operand, rows, WholePanels<kColumns>(matrix, dealer, totals.tiles), next_piece,
                               sink);
}

}  // namespace gemma
