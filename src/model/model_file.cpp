#include "model/model_file.h"

#include <algorithm>
#include <utility>

#include "gemma/error.h"
#include "model/check_scales.h"
#include "model/hash.h"
#include "model/input_file.h"
#include "model/mapped_file.h"
#include "model/matrix_parts.h"
#include "model/metadata.h"
#include "model/quote.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

constexpr const char* kAdvice = "\nConvert it again with: gemma-convert <hf-directory> -o <file>";
constexpr std::string_view kHeaderHashKey = "\"header_hash\":\"";

// Appends what the file holds, in order, for each weight that is visited.
struct LayoutLister {
  WeightTypes types;
  std::vector<TensorInfo>& tensors;

  void operator()(const std::string& name, const Matrix&, int rows, int columns) const {
    const WeightType type = type_of(name, types);
    check_columns(type, columns, name);
    for (const MatrixPart& part : parts_of(type, rows, columns)) {
      add({.name = name + std::string(part.suffix), .type = part.type, .shape = {part.shape[0], part.shape[1]}});
    }
  }
  void operator()(const std::string& name, std::span<const float>, int size) const {
    add({.name = name, .type = DType::kF32, .shape = {size}});
  }

  void add(TensorInfo tensor) const {
    tensor.bytes = bytes_of(tensor.type);
    for (const std::int64_t dimension : tensor.shape) tensor.bytes *= static_cast<std::uint64_t>(dimension);
    const std::uint64_t padding = (kWeightAlignment - tensor.bytes % kWeightAlignment) % kWeightAlignment;
    tensors.push_back(std::move(tensor));
    if (padding == 0) return;
    tensors.push_back({.name = tensors.back().name + std::string(kPadSuffix),
                       .type = DType::kU8,
                       .shape = {static_cast<std::int64_t>(padding)},
                       .bytes = padding});
  }
};

// Points each view that is visited at its tensors' bytes.
struct ViewMaker {
  WeightTypes types;
  std::span<const std::byte> file;
  const SafetensorsHeader& header;

  void operator()(const std::string& name, Matrix& matrix, int rows, int columns) const {
    const WeightType type = type_of(name, types);
    std::vector<const std::byte*> parts;
    for (const MatrixPart& part : parts_of(type, rows, columns)) {
      parts.push_back(address(name + std::string(part.suffix)));
    }
    matrix = make_matrix(type, rows, columns, parts);
  }
  void operator()(const std::string& name, std::span<const float>& norm, int size) const {
    norm = {reinterpret_cast<const float*>(address(name)), static_cast<std::size_t>(size)};
  }
  const std::byte* address(const std::string& name) const { return file.data() + header.find(name)->offset; }
};

struct OpenedFile {
  SafetensorsHeader header;
  Metadata metadata;
};

// Throws an Error that says what is wrong, without saying with which file.
void check_tensors(const SafetensorsHeader& header, const Metadata& metadata) {
  const TensorInfo* tokenizer = header.find("tokenizer");
  if (tokenizer == nullptr) throw Error("it has no tensor 'tokenizer'");
  const std::vector<TensorInfo> expected = model_file_tensors(metadata.config, metadata.types, tokenizer->bytes);
  for (const TensorInfo& wanted : expected) {
    const TensorInfo* found = header.find(wanted.name);
    if (found == nullptr) throw Error("it has no tensor " + in_quotes(wanted.name));
    if (found->type != wanted.type) {
      throw Error(wanted.name + " has type " + std::string(name_of(found->type)) + ", but must have " +
                  std::string(name_of(wanted.type)));
    }
    if (found->shape != wanted.shape) {
      throw Error(wanted.name + " has shape " + to_text(found->shape) + ", but config says " + to_text(wanted.shape));
    }
    if (!metadata.hashes.contains(wanted.name)) throw Error("it has no hash of " + wanted.name);
  }
  for (std::size_t i = 0; i < header.tensors.size(); ++i) {
    if (i >= expected.size() || header.tensors[i].name != expected[i].name) {
      throw Error("tensor " + in_quotes(header.tensors[i].name) + " does not belong where it is");
    }
  }
  if (header.data_offset % kWeightAlignment != 0) throw Error("its weights are not aligned");
}

OpenedFile open_header(std::span<const std::byte> bytes, std::uint64_t file_size, const std::string& name) {
  static constexpr std::string_view kGguf = "GGUF";
  if (bytes.size() >= kGguf.size() &&
      std::equal(kGguf.begin(), kGguf.end(), reinterpret_cast<const char*>(bytes.data()))) {
    throw Error("cannot load " + in_quotes(name) +
                ": it is a GGUF file.\nConvert the model's Hugging Face directory instead: " +
                "gemma-convert <hf-directory> -o <file>");
  }
  OpenedFile opened;
  opened.header = SafetensorsHeader::parse(bytes, file_size, name);
  const auto& texts = opened.header.metadata;
  if (!texts.contains("gemma") || !texts.contains("header_hash")) {
    throw Error("cannot load " + in_quotes(name) +
                ": it holds tensors, but is not a .gemma file.\nConvert the directory that it " +
                "came from with: gemma-convert <hf-directory> -o <file>");
  }
  try {
    opened.metadata = parse_metadata(texts.at("gemma"));
    check_tensors(opened.header, opened.metadata);
    if (header_hash(bytes.first(opened.header.data_offset)) != texts.at("header_hash")) {
      throw Error("its header is damaged (it does not agree with its own hash)");
    }
  } catch (const Error& error) {
    throw Error("cannot load " + in_quotes(name) + ": " + error.what() + "." + kAdvice);
  }
  return opened;
}

}  // namespace

std::string header_hash(std::span<const std::byte> header) {
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  const std::size_t key = text.find(kHeaderHashKey);
  if (key == std::string_view::npos || text.size() - key - kHeaderHashKey.size() < kHashDigits) return {};
  const std::size_t digits = key + kHeaderHashKey.size();
  Hasher hasher;
  hasher.update(header.first(digits));
  const std::string no_hash(kHashDigits, '0');
  hasher.update(std::as_bytes(std::span(no_hash)));
  hasher.update(header.subspan(digits + kHashDigits));
  return hasher.digits();
}

std::vector<TensorInfo> model_file_tensors(const Config& config, WeightTypes types, std::uint64_t tokenizer_bytes) {
  std::vector<TensorInfo> tensors;
  Weights weights;
  visit_weights(config, weights, LayoutLister{types, tensors});
  tensors.push_back({.name = "tokenizer",
                     .type = DType::kU8,
                     .shape = {static_cast<std::int64_t>(tokenizer_bytes)},
                     .bytes = tokenizer_bytes});
  return tensors;
}

Model load_model(std::span<const std::byte> bytes, const std::string& name) {
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % kWeightAlignment != 0) {
    throw Error("cannot load " + in_quotes(name) + ": it is not aligned in memory");
  }
  OpenedFile opened = open_header(bytes, bytes.size(), name);
  Model model;
  model.config = std::move(opened.metadata.config);
  model.defaults = std::move(opened.metadata.defaults);
  visit_weights(model.config, model.weights, ViewMaker{opened.metadata.types, bytes, opened.header});
  const TensorInfo& tokenizer = opened.header.tensors.back();
  model.tokenizer = {reinterpret_cast<const char*>(bytes.data()) + tokenizer.offset,
                     static_cast<std::size_t>(tokenizer.bytes)};
  model.name = name;
  model.identity = hash64(bytes.first(static_cast<std::size_t>(opened.header.data_offset)));
  return model;
}

Model load_model(const std::filesystem::path& path) {
  auto file = std::make_shared<const MappedFile>(path);
  Model model = load_model(file->bytes(), path.string());
  model.mapped = file->bytes();
  model.storage = std::move(file);
  return model;
}

Verification verify_model_file(const std::filesystem::path& path,
                               const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const InputFile file(path);
  // The weights are read rather than mapped, so that a failing disk gives an error instead of a signal.
  const OpenedFile opened = [&] {
    const MappedFile mapped(path);
    return open_header(mapped.bytes(), mapped.bytes().size(), file.name());
  }();

  Verification result;
  result.bytes = opened.header.data_offset;
  std::vector<std::byte> buffer(std::size_t{8} << 20);
  for (const TensorInfo& tensor : opened.header.tensors) {
    Hasher hasher;
    for (std::uint64_t done = 0; done < tensor.bytes;) {
      const std::uint64_t count = std::min<std::uint64_t>(buffer.size(), tensor.bytes - done);
      const std::span<std::byte> block = std::span(buffer).first(static_cast<std::size_t>(count));
      file.read(tensor.offset + done, block);
      hasher.update(block);
      done += count;
      result.bytes += count;
      if (progress) progress(result.bytes, file.size());
    }
    if (hasher.digits() != opened.metadata.hashes.at(tensor.name)) result.damaged_tensors.push_back(tensor.name);
  }
  if (result.damaged_tensors.empty()) check_scales(load_model(path));
  return result;
}

}  // namespace gemma
