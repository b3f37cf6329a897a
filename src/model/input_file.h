#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "model/file_descriptor.h"

namespace gemma {

/// A regular file that is open for reading at any offset. Reading is safe from several threads at once.
class InputFile {
 public:
  /// @throws Error if the file is missing, is not a regular file, or may not be read.
  explicit InputFile(const std::filesystem::path& path);

  std::uint64_t size() const { return size_; }  ///< bytes, when it was opened
  const std::string& name() const { return name_; }
  int descriptor() const { return descriptor_.get(); }

  /// Fills `into` with the bytes from `offset` on.
  /// @throws Error if the file ends before, or the disk fails.
  void read(std::uint64_t offset, std::span<std::byte> into) const;

  /// Whether the file begins with these characters.
  bool starts_with(std::string_view text) const;

 private:
  std::string name_;
  FileDescriptor descriptor_;
  std::uint64_t size_ = 0;
};

/// All of a small file.
/// @throws Error as InputFile does, and if the file is larger than `limit` bytes.
std::string read_small_file(const std::filesystem::path& path, std::uint64_t limit);

}  // namespace gemma
