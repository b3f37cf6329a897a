#include "cli/batch_completion.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <system_error>

#include "cli/batch_identity.h"
#include "cli/batch_input.h"
#include "cli/batch_run.h"
#include "cli/command.h"
#include "cli/final_file.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/partial_file.h"
#include "cli/statistics.h"
#include "cli/status_line.h"
#include "cli/terminal.h"
#include "device/device.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

using Path = std::filesystem::path;

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

bool is_there(const Path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

/// The shard that the command line or the launcher of a parallel program asks for. On a machine with several GPUs each
/// process takes its own.
Shard choose_shard(BatchOptions& options) {
  if (*options.shard_option) return options.shard;
  const std::optional<Rank> rank = find_rank([](const char* name) { return std::getenv(name); });
  if (!rank) return {};
  if (!options.common.quiet) {
    print_note("Started by " + rank->launcher + " as one of " + std::to_string(rank->shard.count) + ": doing shard " +
               to_text(rank->shard) + "; --shard 1/1 does all.");
  }
  std::string& device = options.common.engine.device;
  if (rank->on_machine && (device == "auto" || device == "cuda")) {
    const int count = count_cuda_devices();
    if (count > 1) device = "cuda:" + std::to_string(*rank->on_machine % count);
  }
  return rank->shard;
}

InputSurvey survey(const InputFile& input, bool is_quiet) {
  StatusLine status(!is_quiet);
  return survey_input(input, [&](std::uint64_t bytes) {
    if (status.is_due()) status.show("Counting the prompts: " + std::to_string(100 * bytes / input.size()) + "%");
  });
}

/// What a run's results depend on, its seed included.
/// @param header  of the partial file
/// @throws Error if the partial file is of another run.
Json settle_identity(const BatchIdentity& run, const std::optional<Json>& header, const Path& partial) {
  Json identity = to_json(run);
  if (header) {
    const std::string difference = differences(*header, identity);
    if (!difference.empty() || !header->value("seed", Json()).is_number_unsigned()) {
      throw Error(in_quotes(partial.native()) + " is of another run: " + difference +
                  ". Go on with what that run had, or remove the file to start over");
    }
    return *header;
  }
  if (identity["seed"].is_null()) {
    identity["seed"] = run.shard.is_all() ? std::uint64_t{std::random_device{}()} : shared_seed(identity);
  }
  return identity;
}

enum class Finish { kDone, kInterrupted, kOutputExists };

/// Puts the results into the output.
Finish finish(PartialFile& partial, const Path& output, const Json& identity, bool is_shard, bool may_overwrite,
              const InterruptGuard& interrupt) {
  FinalFile file(output);
  const bool is_copied = partial.copy_in_order([&](std::string_view text) {
    file.write(text);
    return !interrupt.was_interrupted();
  });
  if (!is_copied) return Finish::kInterrupted;
  file.finish();
  // A run that ended between the two last steps has left the very same output.
  if (!may_overwrite && is_there(output) && file_hash(output) != file.hash()) return Finish::kOutputExists;
  if (is_shard) write_record(output, {.identity = identity, .bytes = file.bytes(), .hash = file.hash()});
  file.commit();
  partial.remove();
  return Finish::kDone;
}

/// The command with INPUT.
class BatchCommand {
 public:
  explicit BatchCommand(BatchOptions& options)
      : options_(options),
        format_(input_format(options.files.front())),
        input_(options.files.front()),
        shard_(choose_shard(options)),
        output_(shard_path(options.output, shard_)) {}

  int run() {
    check_output(output_, options_.files);
    // The output of a shard may be what this very command has made: then there is nothing to do.
    const bool has_output = is_there(output_) && !options_.overwrite && !is_there(partial_path(output_));
    const std::optional<ShardRecord> record = has_output && !shard_.is_all() ? read_record(output_) : std::nullopt;
    if (has_output && !record) fail_existing(output_);

    PartialFile partial(partial_path(output_));
    if (!partial.is_locked()) {
      note("This file system has no locks: make sure that no other run writes " + in_quotes(output_.native()) + ".");
    }
    survey_ = survey(input_, options_.common.quiet);
    total_ = shard_.size(survey_.prompts);
    choose_model(options_.common);
    const Stopwatch load;
    Engine engine(options_.common.engine);
    load_s_ = load.seconds();
    note_device(engine.info(), options_.common);

    const BatchIdentity identity{.engine = engine.info(),
                                 .engine_options = options_.common.engine,
                                 .options = options_.generation,
                                 .format = format_,
                                 .input = survey_,
                                 .shard = shard_};
    if (record) {
      if (!differences(record->identity, to_json(identity)).empty()) fail_existing(output_);
      note(in_quotes(output_.native()) + " is finished already.");
      return kExitDone;
    }
    identity_ = settle_identity(identity, partial.header(), partial.path());
    if (!partial.header()) partial.begin(identity_);
    restored_ = partial.restore(shard_, survey_.prompts);
    tell_restored(partial);
    if (is_there(output_) && !options_.overwrite && !partial.is_complete()) fail_existing(output_);
    const bool is_done = answer(engine, partial);
    report(engine.info(), is_done);
    return is_done ? kExitDone : kExitInterrupted;
  }

 private:
  void note(const std::string& text) const {
    if (!options_.common.quiet) print_note(text);
  }

  void tell_restored(const PartialFile& partial) const {
    if (restored_.results > 0) {
      note("Going on: " + grouped(restored_.results) + " of " + grouped(total_) + " results are there already.");
    }
    if (restored_.damaged > 0) {
      note(count_of(restored_.damaged, "line") + " of " + in_quotes(partial.path().native()) +
           " cannot be used; those prompts are done again.");
    }
  }

  /// Does what is left to do. @return false if it was interrupted.
  bool answer(Engine& engine, PartialFile& partial) {
    BatchWork work{.input = input_,
                   .format = format_,
                   .shard = shard_,
                   .options = options_.generation,
                   .seed = identity_["seed"].get<std::uint64_t>()};
    work.options.seed.reset();  // it is the run's, not that of every line
    const InterruptGuard interrupt;
    const Stopwatch watch;
    StatusLine status(!options_.common.quiet);
    const auto goes_on = [&] {
      if (status.is_due()) status.show(progress(watch.seconds()));
      return !interrupt.was_interrupted();
    };
    std::optional<std::string> input_hash;
    Finish end = Finish::kInterrupted;
    try {
      input_hash = run_batch(engine, work, partial, counts_, goes_on);
      seconds_ = watch.seconds();
      if (input_hash == survey_.hash) {
        end = finish(partial, output_, identity_, !shard_.is_all(), options_.overwrite, interrupt);
      }
    } catch (const Error& error) {
      throw Error(std::string(error.what()) + ". What is finished is kept in " + in_quotes(partial.path().native()) +
                  ": run the same command again to go on");
    }
    if (end == Finish::kOutputExists) fail_existing(output_);
    if (input_hash && input_hash != survey_.hash) {
      throw Error(in_quotes(input_.name()) + " has changed while it was being read; remove " +
                  in_quotes(partial.path().native()) + " and start over");
    }
    return end == Finish::kDone;
  }

  std::string progress(double seconds) const {
    const std::uint64_t left = total_ - restored_.results - counts_.done;
    const double speed = seconds > 0 ? static_cast<double>(counts_.steps) / seconds : 0;
    const double seconds_left =
        counts_.done > 0 ? seconds / static_cast<double>(counts_.done) * static_cast<double>(left) : -1;
    return to_text({.done = restored_.results + counts_.done,
                    .total = total_,
                    .tokens_per_s = speed,
                    .seconds_left = seconds_left},
                   terminal_width(STDERR_FILENO));
  }

  void report(const EngineInfo& engine, bool is_done) const {
    const std::uint64_t done = restored_.results + counts_.done;
    const std::uint64_t failed = restored_.failed + counts_.failed;
    const double tokens_per_s = seconds_ > 0 ? static_cast<double>(counts_.tokens) / seconds_ : 0;
    if (options_.common.json) {
      print_json({{"output", output_.string()},
                  {"is_finished", is_done},
                  {"prompts", total_},
                  {"done", done},
                  {"failed", failed},
                  {"seed", identity_["seed"]},
                  {"prompt_tokens", counts_.prompt_tokens},
                  {"cached_tokens", counts_.cached_tokens},
                  {"tokens", counts_.tokens},
                  {"seconds", seconds_},
                  {"tokens_per_s", tokens_per_s}});
    }
    if (counts_.has_damage) warn_of_damage(engine);
    if (is_done) {
      note("Wrote " + in_quotes(output_.native()) + ": " + grouped(done - failed) + " of " +
           count_of(total_, "prompt") + " answered" +
           (failed > 0 ? ", " + grouped(failed) + " failed (their lines have an \"error\")." : "."));
    } else {
      note("Interrupted with " + grouped(done) + " of " + count_of(total_, "prompt") +
           " done, which are kept; run the same command again to go on.");
    }
    if (counts_.done > 0) {
      char speed[64];
      std::snprintf(speed, sizeof speed, " in %.1f s (%.1f tokens/s).", seconds_, tokens_per_s);
      note(grouped(counts_.prompt_tokens) + " tokens of prompts, " + grouped(counts_.cached_tokens) +
           " of them shared; " + grouped(counts_.tokens) + " tokens of answers" + speed);
    }
    if (is_done && !options_.generation.seed && options_.generation.temperature != 0.0f) {
      const std::string seed = std::to_string(identity_["seed"].get<std::uint64_t>());
      note("Seed " + seed + ": the same with --seed " + seed + ".");
    }
    if (options_.common.stats) {
      print_statistic("at once", count_of(static_cast<std::uint64_t>(engine.sequences), "prompt"));
      print_engine(engine, load_s_);
    }
  }

  BatchOptions& options_;
  InputFormat format_;
  InputFile input_;
  Shard shard_;
  Path output_;
  InputSurvey survey_;
  std::uint64_t total_ = 0;  // prompts of the shard
  Json identity_;
  PartialFile::Restored restored_;
  BatchCounts counts_;
  double load_s_ = 0;
  double seconds_ = 0;
};

}  // namespace

std::filesystem::path partial_path(const Path& output) { return Path(output.native() + ".partial"); }

void fail_existing(const Path& output) {
  throw Error(in_quotes(output.native()) + " exists already; replace it with --overwrite, or name another file");
}

void check_output(const Path& output, const std::vector<std::string>& inputs) {
  std::error_code ignored;
  if (std::filesystem::is_directory(output, ignored)) {
    throw Error(in_quotes(output.native()) + " is a directory; give the name of a file");
  }
  if (is_there(output) && !std::filesystem::is_regular_file(output, ignored)) {
    throw UsageError(in_quotes(output.native()) + " is not a regular file, which a run could go on from");
  }
  for (const std::string& input : inputs) {
    for (const Path& written : {output, partial_path(output), record_path(output)}) {
      if (std::filesystem::equivalent(input, written, ignored)) {
        throw UsageError(in_quotes(input) + " would be overwritten by its own results");
      }
    }
  }
}

int complete_batch(BatchOptions& options) { return BatchCommand(options).run(); }

}  // namespace gemma::cli
