#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "model/file_descriptor.h"

namespace gemma {

/// A file that appears under its name only when it is complete. Until `commit` it is written under a temporary name in
/// the same folder; without `commit` nothing is left behind.
class AtomicFile {
 public:
  /// @param tag  part of the temporary name: what two processes that write the same file do not share; the process id
  ///             if empty
  /// @throws Error if the folder does not exist or may not be written, or if `path` is something other than a file.
  explicit AtomicFile(const std::filesystem::path& path, std::string tag = {});
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Writes at any offset.
  /// @throws Error if the disk is full or fails.
  void write(std::uint64_t offset, std::span<const std::byte> bytes);

  /// Makes the contents durable and gives the file its name, replacing any file of that name in one step.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  FileDescriptor descriptor_;
  bool is_committed_ = false;
};

}  // namespace gemma
