#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace gemma {

/// A file mapped into memory for reading. The mapping begins at a page boundary and its pages are read when touched.
class MappedFile {
 public:
  /// @throws Error if the file is missing, empty, not a regular file, or may not be read.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace gemma
