#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace gemma::cli {

/// The shards of an output that lie beside it, in order.
/// @throws Error if there are none, or some are missing or not finished.
std::vector<std::filesystem::path> find_shards(const std::filesystem::path& output);

struct Merged {
  std::uint64_t prompts = 0;
  std::uint64_t failed = 0;
  std::size_t shards = 0;
  bool has_mixed_devices = false;  ///< so one run on one device might not have given the same
};

/// Joins the outputs of all shards of a run, in the order of the input.
/// @param shards  in any order
/// @param on_progress  hears how many prompts of how many are done; returns false to stop
/// @throws Error if they are not all the shards of one run, or one has changed since it was finished; then, or when it
///         is stopped, `output` is not touched.
/// @return nothing done (prompts == 0) when stopped
Merged merge_shards(const std::filesystem::path& output, const std::vector<std::filesystem::path>& shards,
                    const std::function<bool(std::uint64_t, std::uint64_t)>& on_progress);

}  // namespace gemma::cli
