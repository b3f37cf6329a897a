#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "cli/json_output.h"
#include "model/atomic_file.h"
#include "model/hash.h"

namespace gemma::cli {

/// OUTPUT of a batch: appears in one step when all of it has been written.
class FinalFile {
 public:
  explicit FinalFile(const std::filesystem::path& path) : file_(path, "batch") {}

  void write(std::string_view text);
  void finish();  ///< writes what is still held back: bytes() and hash() are those of the file from now on
  void commit() { file_.commit(); }

  std::uint64_t bytes() const { return bytes_; }
  std::string hash() const { return hasher_.digits(); }

 private:
  AtomicFile file_;
  std::string held_back_;
  std::uint64_t bytes_ = 0;
  Hasher hasher_;
};

/// The hash that FinalFile gives to a file. @throws Error if it cannot be read.
std::string file_hash(const std::filesystem::path& path);

/// What stays beside a shard's output for --merge: what its run depends on, and what tells whether the file is whole.
struct ShardRecord {
  Json identity;
  std::uint64_t bytes = 0;
  std::string hash;
};

std::filesystem::path record_path(const std::filesystem::path& output);  ///< "NAME.run"

void write_record(const std::filesystem::path& output, const ShardRecord& record);

/// @return nullopt if there is none.
/// @throws Error if it is damaged.
std::optional<ShardRecord> read_record(const std::filesystem::path& output);

}  // namespace gemma::cli
