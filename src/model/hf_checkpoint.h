#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/input_file.h"
#include "model/safetensors.h"

namespace gemma {

/// One tensor of a Hugging Face checkpoint and the file that it lies in.
struct HfTensor {
  TensorInfo info;
  std::shared_ptr<const InputFile> file;
};

/// The weights of a Hugging Face directory: `model.safetensors`, or shards with `model.safetensors.index.json`.
class HfCheckpoint {
 public:
  /// Opens all files and reads their headers.
  /// @throws Error if there are no weights, a shard is missing or damaged, or index and shards disagree.
  explicit HfCheckpoint(const std::filesystem::path& directory);

  /// By name.
  const std::map<std::string, HfTensor>& tensors() const { return tensors_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  void add_file(const std::filesystem::path& path);

  std::map<std::string, HfTensor> tensors_;
  std::vector<std::filesystem::path> files_;
};

}  // namespace gemma
