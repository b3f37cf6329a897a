#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/json_output.h"
#include "cli/shard.h"
#include "model/file_descriptor.h"

namespace gemma::cli {

/// The results of a batch as they finish, in any order, kept so that they outlive whatever ends the program.
///
/// A line each: 16 hexadecimal digits, a hash of what follows; a space; JSON. The first line is what the run depends
/// on, every other a line of the final file. A line that was cut off, or damaged, does not match its hash and does not
/// count: its prompt is done again. One process at a time can have the file.
class PartialFile {
 public:
  /// Opens the file, or makes it.
  /// @throws Error if another process has it, if it cannot be written, or if it is something else.
  explicit PartialFile(const std::filesystem::path& path);

  /// Removes the file if nothing has been written to it.
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// What the run that made the file depends on; nullopt for a new file.
  const std::optional<Json>& header() const { return header_; }

  /// Whether other processes are kept out; some network file systems cannot do that.
  bool is_locked() const { return is_locked_; }

  /// Writes the header of a new file.
  void begin(const Json& header);

  struct Restored {
    std::uint64_t results = 0;  ///< that are there
    std::uint64_t failed = 0;   ///< of them, those that say why there is no answer
    std::uint64_t damaged = 0;  ///< lines that do not count
  };

  /// Finds the results that are there, and cuts off what was not finished. To be called once, after begin() or on a
  /// file that has a header.
  Restored restore(const Shard& shard, std::uint64_t prompts);

  bool has(std::uint64_t index) const { return offsets_[shard_.place(index)] != 0; }
  bool is_complete() const { return missing_ == 0; }

  /// Keeps a result: from here on it survives the end of the process, and soon that of the machine.
  /// @param json  one line that begins with `{"index":INDEX,`
  /// @throws Error if it cannot be written; the file is then as before.
  void append(std::uint64_t index, std::string_view json);

  /// Hands what was appended to the disk, if the last time is long ago.
  void sync_if_due();
  void sync();

  /// Writes the results in the order of the input, each on a line.
  /// @param write  takes them piece by piece; returns false to stop
  /// @return whether it was not stopped.
  /// @throws Error if a result has been damaged meanwhile.
  bool copy_in_order(const std::function<bool(std::string_view)>& write) const;

  void remove();

 private:
  void open();
  void read_header();
  void write_line(std::string_view json);

  std::filesystem::path path_;
  FileDescriptor descriptor_;
  bool is_locked_ = false;
  std::optional<Json> header_;
  std::uint64_t end_ = 0;  // where the next line goes
  Shard shard_;
  std::vector<std::uint64_t> offsets_;  // of the lines, by place in the shard; 0 where there is none
  std::uint64_t missing_ = 0;
  bool has_unsynced_ = false;
  std::chrono::steady_clock::time_point last_sync_;
};

}  // namespace gemma::cli
