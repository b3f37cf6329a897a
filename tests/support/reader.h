#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "runtime/kv_cache.h"
#include "support/devices.h"
#include "support/naive.h"

namespace gemma {

using Logits = std::vector<std::vector<float>>;  ///< [rows][vocab]

/// How a Reader sets up its device.
struct ReaderOptions {
  int threads = 1;
  int max_rows = 64;
  int context = 1024;  ///< positions of a sequence
  int sequences = 1;
  int window = 0;  ///< 0: the model's own
  int pages = 0;   ///< 0: enough for all sequences
};

/// The next tokens of one sequence.
struct Passage {
  KvCache::Id sequence = 0;
  std::vector<int> tokens;
  RowKind kind = RowKind::kPrompt;
};

/// A device and its cache, fed by hand: what the scheduler does, without its decisions.
class Reader {
 public:
  /// @param model  must outlive this.
  Reader(const DeviceKind& kind, const Model& model, const ReaderOptions& options = {});

  KvCache& cache() { return *cache_; }
  Device& device() { return *device_; }

  /// One step of the forward pass. @return the logits of every row, passage by passage.
  std::vector<Logits> step(std::span<const Passage> passages);

  /// Reads tokens of one sequence, at most `chunk` rows in a step. @return the logits of every token.
  Logits read(KvCache::Id sequence, std::span<const int> tokens, int chunk, RowKind kind = RowKind::kPrompt);

  /// The same without asking for any logits.
  void skip(KvCache::Id sequence, std::span<const int> tokens, int chunk, RowKind kind = RowKind::kPrompt);

 private:
  std::vector<Logits> step(std::span<const Passage> passages, bool with_logits);

  const Model& model_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<KvCache> cache_;
};

/// The logits of a whole text read by a fresh reader in chunks of a given size.
Logits read_alone(const DeviceKind& kind, const Model& model, std::span<const int> tokens, int chunk, int threads = 1);

/// Token ids drawn evenly from [0, vocab), the same for the same seed.
std::vector<int> random_tokens(int count, int vocab, unsigned seed);

/// Largest |a - b|; infinite if the sizes differ or a number is not finite.
double largest_difference(const Logits& a, const naive::Vectors& b);
double largest_difference(const naive::Vectors& a, const naive::Vectors& b);

/// Root of the mean square of a - b; infinite if the sizes differ or a number is not finite.
double typical_difference(const Logits& a, const naive::Vectors& b);

/// "" if all bits are equal, else where the first difference is.
std::string first_difference(const Logits& a, const Logits& b);

/// Joins what was read in several calls.
void append(Logits& all, const Logits& more);

}  // namespace gemma
