#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/batch.h"
#include "model/model.h"

namespace gemma {

/// How keys and values are kept. Values are rounded to it before any query sees them, so that results do not depend on
/// how a prompt was cut into chunks.
enum class KvType : std::uint8_t {
  kF32,
  kBf16,
  kQ8,  ///< int8 with a float32 scale for each head and position: x = scale * code
};

/// Bytes of one head's key or value at one position.
constexpr std::size_t head_bytes(KvType type, int head_dim) {
  const auto size = static_cast<std::size_t>(head_dim);
  return type == KvType::kF32 ? 4 * size : type == KvType::kBf16 ? 2 * size : size + sizeof(float);
}

/// Positions in a page of a global layer, and keys in a block that attention reduces at once. Blocks are aligned to
/// absolute positions; rings have a multiple of this many slots, so a block's keys are neighbours in a ring too.
inline constexpr int kPagePositions = 64;

/// Attention reduces this many keys (aligned to absolute positions) on their own before combining the parts in
/// ascending order. A constant, so that results depend neither on the batch nor on the processor.
inline constexpr int kSpanPositions = 8 * kPagePositions;

/// The cache that a device sets aside: for every local layer `rings` rings of `ring_slots` slots, for every global
/// layer `pages` pages of kPagePositions positions. A slot or position holds kv_heads keys and as many values.
struct KvLayout {
  KvType type = KvType::kF32;
  int window = 0;      ///< of the local layers, after any override
  int context = 0;     ///< positions that a sequence may have
  int rings = 0;       ///< sequences that may be alive at once
  int ring_slots = 0;  ///< a multiple of kPagePositions; position p is in slot p % ring_slots
  int pages = 0;       ///< in the pool; a page number means the same page in every global layer
};

/// A part of a decoding step: what the processor's parts spend on it, all layers together, on average.
struct PhaseTime {
  const char* name = "";
  double busy_s = 0;
  double waiting_s = 0;  ///< afterwards, until all parts have come so far
};

/// The steps of Gemma 2's forward pass on one kind of processor. A device holds the weights, the activations of the
/// rows of one step, and the cache; it knows nothing of requests.
///
/// A step's calls come in the order of the forward pass (src/runtime/transformer.cpp) with the same batch throughout.
/// Residual stream x: [rows, hidden] float32. Results of a row depend on that row's sequence alone, to the last bit.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string description() const = 0;                   ///< for people: "CPU, AVX-512, 2 threads"
  virtual int max_rows() const = 0;                              ///< rows that a batch may have
  virtual int max_generated_rows() const { return max_rows(); }  ///< of them, generated rows
  virtual int max_logit_rows() const = 0;                        ///< rows whose logits are held at once
  virtual int max_top_logprobs() const { return std::numeric_limits<int>::max(); }  ///< of OutputRow::top_logprobs
  virtual const KvLayout& kv_layout() const = 0;

  /// Bytes of the device's own memory that weights, cache and work space take; 0 where they lie in the host's memory.
  virtual std::size_t memory_bytes() const { return 0; }

  /// Takes all generated rows of the batch from their tokens to their logits, where the device has a kernel for the
  /// whole step. @return whether it did: then the steps below concern the prompt rows alone, and are left out if there
  /// are none.
  virtual bool decode_at_once(const Batch& /*batch*/) { return false; }

  /// decode_at_once() of a batch with one row, with clocks in its kernel, for those who measure. @return nothing where
  /// there is no such kernel: then nothing was done
  virtual std::vector<PhaseTime> profile_decode(const Batch& /*batch*/) { return {}; }

  /// x = embedding of each row's token, times Config::embedding_scale().
  virtual void embed(const Batch& batch) = 0;

  /// RMSNorm(x) -> queries, keys, values -> rotary embedding of queries and keys. The keys and values of the rows wait
  /// beside the cache, already rounded to its type, until `attend` has read what they will overwrite.
  virtual void qkv(const Batch& batch, int layer) = 0;

  /// Grouped-query attention with soft-capped scores of every row over its sequence's cache and the rows of the batch
  /// that come before it in its sequence; then the rows' keys and values are committed to the cache.
  virtual void attend(const Batch& batch, int layer) = 0;

  /// x += RMSNorm(attention output projected to the hidden size).
  virtual void attention_out(const Batch& batch, int layer) = 0;

  /// x += RMSNorm(down(gelu(gate(h)) * up(h))), h = RMSNorm(x).
  virtual void mlp(const Batch& batch, int layer) = 0;

  /// Final RMSNorm -> tied embedding (or head) -> soft cap, for the rows of batch.outputs[first, first + count).
  /// @param count  at most max_logit_rows(): 8192 rows of 256,000 float32 logits would be 8.4 GB.
  virtual void logits(const Batch& batch, int first, int count) = 0;

  /// Answers batch.outputs[first, first + count) from the logits just made. Where the device runs ahead, the answers
  /// are not there before `finish`, and until then must stay where they are.
  /// @param answers  [count]
  virtual void sample(const Batch& batch, int first, int count, std::span<Output> answers) = 0;

  /// Whether steps are only begun when they are called for, so that the next one can be given out before the answers of
  /// this one are looked at: see kSampledToken.
  virtual bool runs_ahead() const { return false; }

  /// Waits for the answers of all calls of `sample` but the last `calls_ahead`.
  virtual void finish(int /*calls_ahead*/) {}

  /// Waits for all that was begun: for those who measure.
  virtual void synchronize() {}

  /// Copies all local layers' keys and values of one ring to another.
  virtual void copy_ring(int from, int to) = 0;

  /// Copies one page of all global layers to another.
  virtual void copy_page(int from, int to) = 0;

  /// Bytes of one position in all local layers: what read_slots and write_slots move for each slot.
  virtual std::size_t slot_bytes() const = 0;

  /// Reads the keys and values of all local layers in `count` neighbouring slots of a ring.
  /// @param out [count * slot_bytes()], in an order of the device's own
  virtual void read_slots(int ring, int slot, int count, std::span<std::byte> out) = 0;

  /// Puts back what read_slots has read of as many slots.
  virtual void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) = 0;
};

struct CudaOptions {
  int ordinal = 0;   ///< which GPU, as CUDA counts them
  int max_rows = 1;  ///< rows that a batch may have
  KvLayout kv;
};

/// An NVIDIA GPU. Loads the plug-in library that has the kernels, and with it CUDA, only now.
/// @throws Error if there is no such library, driver or GPU, or if weights, cache and work space do not fit into the
/// GPU's memory, with the numbers.
std::unique_ptr<Device> make_cuda_device(const Model& model, const CudaOptions& options);

/// GPUs that make_cuda_device can use; 0 also where the plug-in library or the driver is missing.
/// @param why_not  when not nullptr, receives the reason if there are none.
int count_cuda_devices(std::string* why_not = nullptr);

/// Whether make_cuda_device has something to work with: the plug-in library, a driver, and at least one GPU.
/// @param why_not  when not nullptr, receives the reason if there is none.
bool has_cuda_device(std::string* why_not = nullptr);

/// What a processor reaches at best, measured: what its speed is held against.
struct DeviceLimits {
  double read_bytes_per_s = 0;     ///< reading memory that no cache holds
  double multiply_flop_per_s = 0;  ///< large matrix products in the type that prompts are read with
};

/// Of an NVIDIA GPU. Takes a few GB of its memory for half a second.
/// @throws Error as make_cuda_device does.
DeviceLimits measure_cuda_limits(int ordinal);

struct CpuOptions {
  int threads = 0;   ///< 0: one for each core that this process may use
  int max_rows = 1;  ///< rows that a batch may have
  KvLayout kv;

  /// Called with each input of a matrix product: the matrix, the row of the batch, and [columns] numbers. For different
  /// rows, from several threads at once. May be empty.
  std::function<void(const Matrix&, int row, std::span<const float> input)> observe_input = {};
};

/// The reference device: float32 arithmetic on weights used where they lie.
/// @throws Error if the cache and work space do not fit into memory, with the numbers.
std::unique_ptr<Device> make_cpu_device(const Model& model, const CpuOptions& options);

}  // namespace gemma
