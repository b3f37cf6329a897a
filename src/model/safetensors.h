#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma {

/// Element types of the safetensors format that this project reads or writes.
enum class DType : std::uint8_t { kBf16, kF16, kF32, kF64, kI8, kU8, kI16, kU16, kI32, kU32, kI64, kU64, kBool };

std::size_t bytes_of(DType type);
std::string_view name_of(DType type);  ///< "BF16"

/// A shape as people write it: "[2304, 9216]".
std::string to_text(std::span<const std::int64_t> shape);

/// Where one tensor lies. Checked: offsets lie within the file, and agree with shape and type.
struct TensorInfo {
  std::string name;
  DType type = DType::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  ///< of its first byte, from the start of the file
  std::uint64_t bytes = 0;
};

/// The header of a safetensors file, checked against everything that the format demands: a header length that the file
/// can hold (and at most 100 MB), JSON of the right form, known types, sizes that match shapes without overflow, no
/// overlap, no holes, nothing after the last tensor, metadata of strings, no duplicate names.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              ///< in the order of their offsets
  std::map<std::string, std::string> metadata;  ///< `__metadata__`
  std::uint64_t data_offset = 0;                ///< of the first tensor's bytes, from the start of the file

  /// @param bytes      the start of the file: at least the header (all of the file will do).
  /// @param file_size  of the whole file.
  /// @param name       of the file, for messages.
  /// @throws Error saying what is wrong.
  static SafetensorsHeader parse(std::span<const std::byte> bytes, std::uint64_t file_size, const std::string& name);

  /// nullptr if there is no such tensor.
  const TensorInfo* find(std::string_view tensor) const;
};

/// The bytes of a header (length prefix included) for tensors laid out one after the other in the order given, padded
/// with spaces so that the data begins at a multiple of `alignment`. Offsets in `tensors` are not read but computed.
std::string serialize_header(std::span<const TensorInfo> tensors, const std::map<std::string, std::string>& metadata,
                             std::size_t alignment);

}  // namespace gemma
