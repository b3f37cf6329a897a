#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "model/atomic_file.h"
#include "model/hash.h"
#include "model/metadata.h"
#include "model/safetensors.h"

namespace gemma {

/// Writes a .gemma file from front to back. The file appears under its name when it is complete, else not at all.
class ModelFileWriter {
 public:
  /// @param metadata  hashes are filled in while writing.
  /// @throws Error if the file cannot be written, or the disk has too little space for it.
  ModelFileWriter(const std::filesystem::path& path, Metadata metadata, std::uint64_t tokenizer_bytes);

  /// The next bytes of the tensor that is due: all weights in the order of visit_weights, then the tokenizer. Padding
  /// is added by itself.
  void append(std::span<const std::byte> bytes);

  /// Completes the file. All tensors must have been written.
  void finish();

  std::uint64_t size() const { return size_; }  ///< of the complete file, in bytes

 private:
  void write(std::span<const std::byte> bytes);
  void finish_full_tensors();

  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  AtomicFile file_;
  std::uint64_t size_ = 0;
  std::uint64_t offset_ = 0;     // in the file
  std::size_t tensor_ = 0;       // the one being written
  std::uint64_t remaining_ = 0;  // its bytes still to come
  Hasher hasher_;                // of its bytes so far
};

/// Writes a model to a .gemma file.
/// @throws Error if the file cannot be written.
void save_model(const Model& model, const std::filesystem::path& path);

}  // namespace gemma
