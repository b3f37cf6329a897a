#include "cli/shard.h"

#include <array>
#include <limits>
#include <string_view>

#include "cli/numbers.h"
#include "gemma/error.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr std::uint64_t kMostShards = 1'000'000;

// The variables that tell a process its place. What starts inside of something else comes first: mpirun in a job of
// Slurm, where srun itself may speak PMI, too, and says the same in both.
struct Launcher {
  const char* name;
  const char* rank;
  const char* size;
  const char* on_machine;
};

constexpr std::array<Launcher, 3> kLaunchers = {{
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
}};

std::uint64_t number_of(const char* name, const char* text) {
  std::uint64_t number = 0;
  if (parse_number(std::string_view(text), number) && number <= kMostShards) return number;
  throw Error("$" + std::string(name) + " is " + in_quotes(text) + ", which is not a number; --shard 1/1 ignores it");
}

}  // namespace

std::string to_text(const Shard& shard) { return std::to_string(shard.number) + "/" + std::to_string(shard.count); }

std::string parse_shard(const std::string& text, Shard& shard) {
  const std::size_t slash = text.find('/');
  Shard parsed;
  const bool is_pair = slash != std::string::npos &&
                       parse_number(std::string_view(text).substr(0, slash), parsed.number) &&
                       parse_number(std::string_view(text).substr(slash + 1), parsed.count);
  if (!is_pair) return in_quotes(text) + " is not a shard; write the second of eight as 2/8";
  if (parsed.count < 1 || parsed.count > kMostShards)
    return "there can be 1 to " + std::to_string(kMostShards) + " shards";
  if (parsed.number < 1 || parsed.number > parsed.count) {
    return in_quotes(text) + " is not a shard: they are counted from 1 to " + std::to_string(parsed.count);
  }
  shard = parsed;
  return {};
}

std::optional<Rank> find_rank(const Environment& environment) {
  // The script of an sbatch job has SLURM_PROCID=0 and the job's SLURM_NTASKS, but runs only once; srun adds a step.
  const bool is_job_script = environment("SLURM_JOB_ID") != nullptr && environment("SLURM_STEP_ID") == nullptr;
  for (const Launcher& launcher : kLaunchers) {
    if (std::string_view(launcher.name) == "Slurm" && is_job_script) continue;
    const char* rank_text = environment(launcher.rank);
    const char* size_text = environment(launcher.size);
    if (rank_text == nullptr || size_text == nullptr) continue;
    const std::uint64_t rank = number_of(launcher.rank, rank_text);
    const std::uint64_t size = number_of(launcher.size, size_text);
    if (size <= 1) continue;
    if (rank >= size) {
      throw Error("$" + std::string(launcher.rank) + " is " + rank_text + ", but $" + launcher.size + " is only " +
                  size_text + "; --shard 1/1 ignores them");
    }
    Rank found{.shard = {.number = rank + 1, .count = size}, .on_machine = {}, .launcher = launcher.name};
    if (const char* text = environment(launcher.on_machine)) {
      found.on_machine = static_cast<int>(number_of(launcher.on_machine, text));
    }
    return found;
  }
  return std::nullopt;
}

std::filesystem::path shard_path(const std::filesystem::path& output, const Shard& shard) {
  if (shard.is_all()) return output;
  std::filesystem::path path = output;
  path.replace_filename(output.stem().native() + ".shard-" + std::to_string(shard.number) + "-of-" +
                        std::to_string(shard.count) + output.extension().native());
  return path;
}

}  // namespace gemma::cli
