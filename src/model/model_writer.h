#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/atomic_file.h"
#include "model/hash.h"
#include "model/metadata.h"
#include "model/safetensors.h"

namespace gemma {

/// Writes a .gemma file: each tensor from front to back, several at a time, since a quantised matrix is made row by row
/// and is several tensors. The file appears under its name when it is complete, else not at all.
class ModelFileWriter {
 public:
  /// @param metadata  hashes are filled in while writing.
  /// @throws Error if the file cannot be written, or the disk has too little space for it.
  ModelFileWriter(const std::filesystem::path& path, Metadata metadata, std::uint64_t tokenizer_bytes);

  /// The next bytes of a tensor that model_file_tensors lists. Padding is added by itself.
  void append(const std::string& tensor, std::span<const std::byte> bytes);

  /// Completes the file. All tensors must have been written.
  void finish();

  std::uint64_t size() const { return size_; }  ///< of the complete file, in bytes

 private:
  // How far a tensor has come.
  struct Progress {
    std::uint64_t offset;     // of its next byte, in the file
    std::uint64_t remaining;  // bytes still to come
    Hasher hasher;            // of its bytes so far
  };

  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  AtomicFile file_;
  std::uint64_t size_ = 0;
  std::map<std::string, Progress> progress_;
};

/// Writes a model to a .gemma file.
/// @throws Error if the file cannot be written.
void save_model(const Model& model, const std::filesystem::path& path);

}  // namespace gemma
