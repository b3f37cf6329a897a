#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "model/safetensors.h"

namespace gemma {

/// Version of the layout of a .gemma file. A reader refuses any other.
inline constexpr int kModelFileVersion = 1;

/// Every weight begins at a multiple of this.
inline constexpr std::size_t kWeightAlignment = 256;

/// Ends the name of the tensor that fills up the space behind another one.
inline constexpr std::string_view kPadSuffix = ".pad";

/// Opens a .gemma file (DESIGN: a safetensors file with the hyper-parameters in its metadata): maps it, checks every
/// name, shape, type, offset and size against the hyper-parameters, and makes the views. Reads the header only; the
/// weights are read when they are used.
/// @throws Error if the file is missing, is a directory, is damaged, has another version, or is not a Gemma 2 model.
Model load_model(const std::filesystem::path& path);

/// The same from memory. @param bytes must outlive the model and be aligned to kWeightAlignment.
Model load_model(std::span<const std::byte> bytes, const std::string& name);

/// The model that is built into the program.
Model load_demo_model();

/// Random weights of a given shape, for tests and benchmarks: normally distributed with a deviation that keeps
/// activations of order one through every layer, the same for the same seed. No tokenizer; stop_tokens is {1}.
/// Quantised weights get random codes and scales instead: evenly distributed, with the same deviation.
/// @param cheap  draw bf16 from a short repeating pattern: as good for timing, and made in seconds at 27B.
Model random_model(const Config& config, std::uint64_t seed, bool cheap = false, WeightTypes types = {});

/// The tensors of a .gemma file for this configuration, in file order, padding and tokenizer included. Offsets are not
/// set: they depend on the size of the header.
/// @throws Error if a matrix cannot be stored in its type, because its rows are not whole groups.
std::vector<TensorInfo> model_file_tensors(const Config& config, WeightTypes types, std::uint64_t tokenizer_bytes);

/// The hash that a .gemma file's header keeps of itself, as 32 digits: XXH3 over the header with the place of the hash
/// zeroed. Empty if the header has no such place.
std::string header_hash(std::span<const std::byte> header);

/// Result of reading every byte of a model file against the hashes stored in it.
struct Verification {
  std::vector<std::string> damaged_tensors;  ///< empty: the file is as it was written
  std::uint64_t bytes = 0;                   ///< that were read
};

/// @param progress  called now and then with bytes done and bytes in all; may be empty.
/// @throws Error if the file cannot be opened as a model at all, or was written with scales that are not finite.
Verification verify_model_file(const std::filesystem::path& path,
                               const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace gemma
