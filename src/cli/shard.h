#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace gemma::cli {

/// Every count-th prompt, beginning with that of index number-1.
struct Shard {
  std::uint64_t number = 1;  ///< from 1, as people count
  std::uint64_t count = 1;

  bool is_all() const { return count == 1; }
  bool has(std::uint64_t index) const { return index % count == number - 1; }
  std::uint64_t size(std::uint64_t prompts) const {
    return (prompts + count - number) / count;
  }  ///< of so many prompts

  /// Place of a prompt among those of this shard, and back.
  std::uint64_t place(std::uint64_t index) const { return index / count; }
  std::uint64_t index(std::uint64_t place) const { return place * count + number - 1; }

  friend bool operator==(const Shard&, const Shard&) = default;
};

std::string to_text(const Shard& shard);  ///< "2/8"

/// @return what is wrong with "2/8" as a shard, or nothing, with `shard` set.
std::string parse_shard(const std::string& text, Shard& shard);

/// Looks up a variable of the environment: std::getenv, other than in tests.
using Environment = std::function<const char*(const char* name)>;

/// What a launcher of parallel programs says about this process.
struct Rank {
  Shard shard;
  std::optional<int> on_machine;  ///< its number among those of this machine, from 0
  std::string launcher;           ///< "Slurm"
};

/// The rank under Slurm's srun, Open MPI, or MPICH and its kin; nullopt when there is but one process.
/// @throws Error if the variables contradict each other.
std::optional<Rank> find_rank(const Environment& environment);

/// "out.shard-2-of-8.jsonl" for "out.jsonl"; the path itself if the shard is all.
std::filesystem::path shard_path(const std::filesystem::path& output, const Shard& shard);

}  // namespace gemma::cli
