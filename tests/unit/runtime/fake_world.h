#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/scheduler.h"
#include "unit/runtime/fake_device.h"

namespace gemma {

struct WorldOptions {
  int sequences = 4;  ///< jobs at once
  int prefixes = 1;   ///< kept beside them
  int context = 400;
  int window = 20;
  int pages = 0;  ///< 0: enough for all sequences
  int chunk = 64;
  int mixed_chunk = 0;  ///< 0: chunk
  std::size_t checkpoint_bytes = std::size_t{1} << 20;
  bool runs_ahead = false;
};

/// What a job's listener has heard.
struct JobLog {
  int starts = 0;
  int cached = 0;
  std::vector<int> reads;
  std::vector<int> tokens;  ///< of the answer, without a stop token
  int ends = 0;
  bool is_complete = false;
};

/// What a job is, and what its listener does besides writing down what it hears.
struct JobPlan {
  std::vector<TextToken> text;
  int max_tokens = 10;
  std::uint64_t seed = 1;
  float repeat_penalty = 1;
  std::optional<int> session = {};
  std::function<bool(const JobLog& log)> on_read = {};
  std::function<JobListener::Next(int token, const JobLog& log)> on_token = {};
  std::function<void(const JobLog& log)> on_end = {};
};

/// A scheduler on a fake device.
class World {
 public:
  explicit World(const WorldOptions& options = {});

  FakeDevice& device() { return device_; }
  KvCache& cache() { return cache_; }
  Scheduler& scheduler() { return scheduler_; }

  /// @param ticket  when not nullptr, receives the job's
  std::shared_ptr<const JobLog> submit(const JobPlan& plan, Scheduler::Ticket* ticket = nullptr);

  /// Steps until all is done, or more steps have been made than any test needs.
  void run();

 private:
  Config config_ = fake_config();
  FakeDevice device_;
  KvCache cache_;
  Scheduler scheduler_;
};

/// Prompt tokens drawn evenly, the same for the same seed.
std::vector<TextToken> random_text(int size, unsigned seed);

/// `text` and what comes after it.
std::vector<TextToken> joined(std::vector<TextToken> text, const std::vector<TextToken>& more);

/// The text with the tokens of an answer behind it.
std::vector<TextToken> answered(std::vector<TextToken> text, const std::vector<int>& answer);

/// The answer that nothing cuts short, made without any scheduler.
std::vector<int> whole_answer(const JobPlan& plan);

}  // namespace gemma
