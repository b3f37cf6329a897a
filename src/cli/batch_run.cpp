#include "cli/batch_run.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cli/batch_line.h"
#include "cli/result_line.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

constexpr int kFewestWaiting = 64;
constexpr std::size_t kMostWaitingBytes = std::size_t{64} << 20;

/// Feeds the engine from the input.
class BatchRun {
 public:
  BatchRun(Engine& engine, const BatchWork& work, PartialFile& partial, BatchCounts& counts)
      : engine_(engine),
        work_(work),
        partial_(partial),
        counts_(counts),
        prompts_(work.input),
        most_waiting_(std::max(kFewestWaiting, 4 * engine.info().sequences)) {}

  /// Submits prompts as long as there is room in the window. @return false if it was stopped.
  bool fill(const std::function<bool()>& goes_on) {
    Line line;
    std::uint64_t index = 0;
    while (has_more_ && waiting_ < most_waiting_ && waiting_bytes_ < kMostWaitingBytes) {
      if (!goes_on()) return false;
      has_more_ = prompts_.next(line, index);
      if (has_more_ && work_.shard.has(index) && !partial_.has(index)) take(line, index);
    }
    return true;
  }

  bool is_done() const { return !has_more_ && waiting_ == 0; }
  std::string input_hash() const { return prompts_.lines().hash(); }

 private:
  void take(const Line& line, std::uint64_t index) {
    if (line.is_too_long) {
      fail(index, nullptr, "the line is longer than " + std::to_string(PromptReader::kLongestLine >> 20) + " MiB");
      return;
    }
    BatchLine parsed = work_.format == InputFormat::kText ? parse_text_line(line.text, work_.options)
                                                          : parse_json_line(line.text, work_.options);
    if (parsed.error.empty()) {
      try {
        submit(index, std::move(parsed), line.text.size());
        return;
      } catch (const Error& error) {
        parsed.error = error.what();
      }
    }
    fail(index, parsed.id, parsed.error);
  }

  void submit(std::uint64_t index, BatchLine&& line, std::size_t bytes) {
    if (!line.request.options.seed) line.request.options.seed = line_seed(work_.seed, index);
    Callbacks callbacks;
    callbacks.on_text = [this](std::string_view) {
      ++counts_.steps;
      return true;
    };
    callbacks.on_done = [this, index, bytes, id = line.id](const Result& result) {
      partial_.append(index, result_line(index, id, result, engine_.tokenizer()));
      ++counts_.done;
      counts_.has_damage |= result.is_damaged;
      counts_.tokens += result.tokens.size();
      counts_.prompt_tokens += static_cast<std::uint64_t>(result.prompt_tokens);
      counts_.cached_tokens += static_cast<std::uint64_t>(result.cached_tokens);
      --waiting_;
      waiting_bytes_ -= bytes;
    };
    engine_.submit(line.request, std::move(callbacks));
    ++waiting_;
    waiting_bytes_ += bytes;
  }

  void fail(std::uint64_t index, const nlohmann::json& id, const std::string& error) {
    partial_.append(index, error_line(index, id, error));
    ++counts_.done;
    ++counts_.failed;
  }

  Engine& engine_;
  const BatchWork& work_;
  PartialFile& partial_;
  BatchCounts& counts_;
  PromptReader prompts_;
  int most_waiting_;
  bool has_more_ = true;
  int waiting_ = 0;  // submitted and not done
  std::size_t waiting_bytes_ = 0;
};

}  // namespace

std::optional<std::string> run_batch(Engine& engine, const BatchWork& work, PartialFile& partial, BatchCounts& counts,
                                     const std::function<bool()>& goes_on) {
  BatchRun run(engine, work, partial, counts);
  while (run.fill(goes_on) && !run.is_done()) {
    engine.step();
    partial.sync_if_due();
    if (!goes_on()) break;
  }
  partial.sync();
  if (!run.is_done()) return std::nullopt;
  return run.input_hash();
}

}  // namespace gemma::cli
