#pragma once

// Memory as a stream. One warp of each block, the producer (or several, which take turns), copies pieces of weights and
// of the cache into a ring of stages in shared memory, in an order that is known in advance; the other warps consume
// them. The copies never wait for arithmetic, so memory stays busy while the grid waits at a barrier.

#include <cstddef>
#include <cstdint>

#include "decode.cuh"
#include "packed_weights.cuh"
#include "ptx.cuh"

namespace gemma {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = 32 * kConsumerWarps;
inline constexpr int kDecodeThreads = kConsumers + 128;  // the producers' warpgroup; kProducers warps of it work

/// Whether a block has only 99 KB of shared memory on the GPUs that code for this compute capability is for: 8.6, 8.9
/// and 12.x. On all others it has 163 KB or more.
/// @param architecture  as __CUDA_ARCH__ has it
__host__ __device__ constexpr bool is_short_of_memory(int architecture) {
  return architecture == 860 || architecture == 890 || architecture >= 1200;
}

/// What a kernel is compiled for. (The host must ask architecture_of_code() what the GPU runs.)
#ifdef __CUDA_ARCH__
inline constexpr int kArchitecture = __CUDA_ARCH__;
#else
inline constexpr int kArchitecture = 0;
#endif

/// How the weights of a model's layers are streamed: the stages that they lie in, and who fills these.
///
/// kPiecesInFlight is the number of copies that may be under way at once, where there are stages for them. More make
/// every other access to memory wait behind them (measured, in bf16): some 32 KB. (In q8, 32 to 70 KB are the same.)
/// kPiecesIfHungry is that of a block
/// which has no more than kHungryPieces in its stages: it falls behind the others, which all wait for it. One thread
/// sees to a piece in no less than 100 to 150 ns; what is streamed in smaller pieces has several producers, which take
/// the pieces in turn, and no time to look whether a block is hungry (both numbers are the same).
///
/// A warp that waits for a piece must know that the piece before it in the same stage has arrived: a barrier tells one
/// turn of a stage from the next, not from the one after that. It has consumed the piece kConsumerWarps before, and of
/// the same producer no more than those in flight arrive later than a younger one. Hence kMinStages. (With
/// kConsumerWarps stages the piece before is the one that it has consumed itself, and any number may be in flight.)
template <WeightType kType>
struct StreamFormat;

template <>
struct StreamFormat<WeightType::kBf16> {
  static constexpr WeightType kLayers = WeightType::kBf16;
  static constexpr int kPieceBytes = kPieceRows * kPieceColumns * 2;  ///< of a whole piece of the layers' weights
  static constexpr int kStageBytes = kPieceBytes;
  static constexpr int kProducers = 1;
  static constexpr int kMinStages = kConsumerWarps;
  static constexpr int kMaxStages = 32;
  static constexpr int kPiecesInFlight = 4;
  static constexpr int kPiecesIfHungry = 6;
  static constexpr int kHungryPieces = 12;
  static constexpr bool kSendsMessages = true;
};

template <>
struct StreamFormat<WeightType::kQ8> {
  static constexpr WeightType kLayers = WeightType::kQ8;
  static constexpr int kPieceBytes = kPieceColumns / kUnitColumns * unit_bytes(WeightType::kQ8);
  static constexpr int kStageBytes = kPieceBytes;
  static constexpr int kProducers = 2;
  static constexpr int kMinStages = kConsumerWarps + kProducers;
  static constexpr int kMaxStages = 52;
  static constexpr int kPiecesInFlight = 12;
  static constexpr int kPiecesIfHungry = 12;
  static constexpr int kHungryPieces = 0;
  static constexpr bool kSendsMessages = false;
};

template <>
struct StreamFormat<WeightType::kQ4> {
  static constexpr WeightType kLayers = WeightType::kQ4;
  static constexpr int kPieceBytes = kPieceColumns / kUnitColumns * unit_bytes(WeightType::kQ4);
  static constexpr int kStageBytes = (kPieceBytes + 127) / 128 * 128;
  static constexpr int kProducers = 4;
  static constexpr int kMinStages = kConsumerWarps + kProducers;
  static constexpr int kMaxStages = 88;
  static constexpr int kPiecesInFlight = 16;
  static constexpr int kPiecesIfHungry = 16;
  static constexpr int kHungryPieces = 0;
  static constexpr bool kSendsMessages = false;
};

/// Columns of a whole piece of a matrix of this type: half as many where a stage has no room for more.
template <class Format, WeightType kType>
__host__ __device__ constexpr int columns_in_piece() {
  return kType == WeightType::kQ8 && kPieceColumns / kUnitColumns * unit_bytes(kType) > Format::kStageBytes
             ? kUnitColumns
             : kPieceColumns;
}

/// How many stages of those that fit into some memory a stream has: each producer the same number.
template <class Format>
__host__ __device__ constexpr int stages_in(int bytes) {
  const int fitting = bytes / Format::kStageBytes;
  return (fitting < Format::kMaxStages ? fitting : Format::kMaxStages) / Format::kProducers * Format::kProducers;
}

/// Where 16 bytes of a piece of weights lie in its stage: in runs of 64 columns, of which each row has 128 bytes; in
/// them the 16 bytes change places with the row, so that the 8 rows of a tensor core operand lie in different banks.
__device__ inline int swizzled(int row, int column) {
  return column / 64 * (kPieceRows * 64) + row * 64 + (((column / 8) % 8) ^ row) * 8;
}

/// A place in the ring that moves on piece by piece.
struct RingPlace {
  int stage = 0;
  unsigned parity = 0;

  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Pieces are numbered from 0 in the order of the stream; piece i lies in stage i % stages and is copied by producer
/// i % kProducers. It is consumed by warp i % kConsumerWarps, or with many rows by a warp of each group, or by all
/// warps together.
template <class Format>
struct Stream {
  char* stage_memory;       // [stages, Format::kStageBytes]
  std::uint64_t* full;      // [stages]: a piece has arrived
  std::uint64_t* empty;     // [stages]: a piece has been consumed
  int stages;               // a multiple of Format::kProducers: whoever fills a stage is always the same
  unsigned stages_inverse;  // of 2^32, rounded up
  int releases;             // arrivals that make a stage free: one of each group of warps that reads it

  __device__ __nv_bfloat16* memory(int stage) const {
    return reinterpret_cast<__nv_bfloat16*>(stage_memory + stage * Format::kStageBytes);
  }
  __device__ __nv_bfloat16* stage(int piece) const { return memory(stage_index(piece)); }
  /// The same, of pieces that are not in bf16.
  __device__ std::byte* bytes(int piece) const { return reinterpret_cast<std::byte*>(stage(piece)); }
  __device__ RingPlace place(int piece) const { return {stage_index(piece), static_cast<unsigned>(turn(piece)) & 1}; }
  __device__ void wait_until_full(int piece) const { barrier_wait(&full[stage_index(piece)], turn(piece) & 1); }
  /// By all lanes of the only warp that reads the stage, when they have done so for the last time. (Of a panel, a warp
  /// of each group does so for itself.)
  __device__ void release(int piece) const {
    __syncwarp();
    if (static_cast<int>(threadIdx.x % 32) < releases) barrier_arrive(&empty[stage_index(piece)]);
  }

 private:
  /// piece / stages, exact for up to 2^25 pieces of a step in up to 128 stages.
  __device__ int turn(int piece) const {
    return static_cast<int>(__umulhi(static_cast<unsigned>(piece), stages_inverse));
  }
  __device__ int stage_index(int piece) const { return piece - turn(piece) * stages; }
};

/// A producer's end of a stream. With a copy engine (Hopper and newer) one thread does all of it, else the 32 lanes
/// of a warp together.
///
/// All producers go through all matrices, keys and values; of their pieces each copies those that are its own.
template <class Format>
class Producer {
 public:
  /// @param index  which of the producers
  __device__ explicit Producer(const Stream<Format>& stream, int index = 0)
      : stream_(stream),
        in_flight_(max(min(Format::kPiecesInFlight, spare_stages(stream)) / Format::kProducers, 1)),
        in_flight_if_hungry_(max(min(Format::kPiecesIfHungry, spare_stages(stream)) / Format::kProducers, 1)),
        others_(index) {
    next_.stage = oldest_.stage = index;
#if __CUDA_ARCH__ >= 900
    policy_ = streaming_policy();
#endif
  }

  /// Says that a matrix will be copied from soon.
  __device__ void expect(const MatrixSource& source) {
#if __CUDA_ARCH__ >= 900
    if constexpr (Format::kLayers == WeightType::kBf16) prefetch_tensor_map(source.tensor_map);
#else
    (void)source;
#endif
  }

  /// How many pieces come before this producer's next own one. (Known to be none where all are its own: else the
  /// compiler takes it for a number that differs between lanes, and so all that depends on it.)
  __device__ int others() const { return Format::kProducers == 1 ? 0 : others_; }
  /// Goes on by some pieces, of which this producer has copied its own.
  __device__ void pass(int pieces) {
    if constexpr (Format::kProducers > 1) {
      static_assert((Format::kProducers & (Format::kProducers - 1)) == 0);
      others_ = (others_ - pieces) & (Format::kProducers - 1);
    }
  }

  /// Copies rows [row, row + kPieceRows) and columns [column, column + kPieceColumns) of a matrix in bf16, as far as it
  /// has them: a piece of this producer's own.
  __device__ void copy_weights(const MatrixShape& shape, const MatrixSource& source, int tile, int column) {
    static_assert(Format::kLayers == WeightType::kBf16);
    begin(Format::kStageBytes);
#if __CUDA_ARCH__ >= 900
    tensor_copy(stage(), source.tensor_map, 0, tile * shape.rows_in_tile(), 0, column / 64, full(), policy_);
#else
    const int lane = threadIdx.x % 32;
    for (int row = 0; row < kPieceRows; ++row) {
      const int output = shape.is_gate_up ? row / 4 * shape.outputs / 2 + tile * 4 + row % 4 : tile * kPieceRows + row;
      if (output >= shape.outputs) continue;
      const __nv_bfloat16* from =
          static_cast<const __nv_bfloat16*>(source.weights) + static_cast<std::size_t>(output) * shape.columns + column;
      for (int i = 8 * lane; i < min(kPieceColumns, shape.columns - column); i += 8 * 32)
        copy_async_16(stage() + swizzled(row, i), from + i);
    }
#endif
    end();
  }

  /// Copies a run of bytes, a multiple of 16: a piece of this producer's own.
  __device__ void copy_own(const void* from, int bytes) {
    begin(static_cast<unsigned>(bytes));
    copy_run(0, from, bytes);
    end();
  }

  /// The same of two runs of the same number of bytes, one behind the other.
  __device__ void copy_own_pair(const __nv_bfloat16* first, const __nv_bfloat16* second, int elements) {
    begin(4 * elements);
#if __CUDA_ARCH__ >= 900
    bulk_copy(stage(), first, 2 * elements, full(), policy_);
    bulk_copy(stage() + elements, second, 2 * elements, full(), policy_);
#else
    for (int i = 8 * static_cast<int>(threadIdx.x % 32); i < elements; i += 8 * 32) {
      copy_async_16(stage() + i, first + i);
      copy_async_16(stage() + elements + i, second + i);
    }
#endif
    end();
  }

  struct PairOfRuns {
    const void* first;
    const void* second;
    int bytes;  ///< of each
  };
  /// The same of two pairs of runs.
  __device__ void copy_own_pairs(const PairOfRuns& pair, const PairOfRuns& next) {
    begin(2 * static_cast<unsigned>(pair.bytes + next.bytes));
    copy_run(0, pair.first, pair.bytes);
    copy_run(pair.bytes, pair.second, pair.bytes);
    copy_run(2 * pair.bytes, next.first, next.bytes);
    copy_run(2 * pair.bytes + next.bytes, next.second, next.bytes);
    end();
  }

 private:
  /// How many pieces may be in flight for the sake of those who wait.
  __device__ static int spare_stages(const Stream<Format>& stream) {
    if (kArchitecture < 900 || is_short_of_memory(kArchitecture)) {
      if (stream.stages == kConsumerWarps) return kConsumerWarps;
    }
    return stream.stages - kConsumerWarps;
  }

  __device__ void copy_run(int offset, const void* from, int bytes) {
    char* const to = reinterpret_cast<char*>(stage()) + offset;
#if __CUDA_ARCH__ >= 900
    bulk_copy(to, from, static_cast<unsigned>(bytes), full(), policy_);
#else
    for (int i = 16 * static_cast<int>(threadIdx.x % 32); i < bytes; i += 16 * 32)
      copy_async_16(to + i, static_cast<const char*>(from) + i);
#endif
  }

  __device__ void advance(RingPlace& place) const {
    if constexpr (Format::kProducers == 1) {
      place.advance(stream_.stages);
    } else {
      place.stage += Format::kProducers;
      if (place.stage >= stream_.stages) {
        place.stage -= stream_.stages;
        place.parity ^= 1;
      }
    }
  }

  __device__ __nv_bfloat16* stage() const { return stream_.memory(next_.stage); }
  __device__ std::uint64_t* full() const { return &stream_.full[next_.stage]; }

  __device__ void begin(unsigned bytes) {
    barrier_wait_patiently(&stream_.empty[next_.stage], next_.parity ^ 1);
    const int limit = is_hungry() ? in_flight_if_hungry_ : in_flight_;
    while (begun_ >= limit) {
      barrier_wait(&stream_.full[oldest_.stage], oldest_.parity);
      advance(oldest_);
      --begun_;
    }
    ++begun_;
#if __CUDA_ARCH__ >= 900
    barrier_expect_bytes(full(), bytes);
#else
    (void)bytes;
#endif
  }

  /// Whether the pieces before the next one, as far as they have not been consumed, are no more than kHungryPieces.
  __device__ bool is_hungry() const {
    if constexpr (Format::kPiecesIfHungry == Format::kPiecesInFlight) return false;
    const int ahead = max(stream_.stages - Format::kHungryPieces, 0);  // a piece that could be copied already
    const bool is_next_turn = next_.stage + ahead >= stream_.stages;
    const int stage = next_.stage + ahead - (is_next_turn ? stream_.stages : 0);
    return barrier_is_open(&stream_.empty[stage], next_.parity ^ (is_next_turn ? 0u : 1u));
  }

  __device__ void end() {
#if __CUDA_ARCH__ < 900
    copy_async_arrive(full());
#endif
    advance(next_);
  }

  Stream<Format> stream_;
  int in_flight_, in_flight_if_hungry_;
  int others_;        // pieces of others before the next one of its own
  int begun_ = 0;     // own pieces that have not been waited for
  RingPlace next_;    // the next one
  RingPlace oldest_;  // the oldest one that has not been waited for
  std::uint64_t policy_ = 0;
};

/// Threads of a producer, and arrivals that complete a `full` barrier: one with a copy engine, else one of each lane.
__device__ inline unsigned producer_threads() {
#if __CUDA_ARCH__ >= 900
  return 1;
#else
  return 32;
#endif
}

/// Which producer the thread is, of the threads behind the consumers; kProducers or more: it has nothing to do.
template <class Format>
__device__ int producer_index() {
  const unsigned thread = threadIdx.x - kConsumers;
  if constexpr (Format::kProducers == 1) return thread < producer_threads() ? 0 : 1;
  return thread % 32 < producer_threads() ? static_cast<int>(thread / 32) : Format::kProducers;
}

/// A barrier among the consumers alone.
__device__ inline void consumer_barrier() { named_barrier<1, kConsumers>(); }

/// A barrier of the consumers at which only one warp waits, for what the others have done before they arrive.
__device__ inline void early_barrier_wait() { named_barrier<2, kConsumers>(); }
__device__ inline void early_barrier_arrive() { named_barrier_arrive<2, kConsumers>(); }

}  // namespace gemma
