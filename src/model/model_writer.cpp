#include "model/model_writer.h"

#include <cassert>
#include <utility>

#include "gemma/error.h"
#include "model/matrix_parts.h"
#include "model/model_file.h"
#include "model/quote.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

std::string make_header(std::span<const TensorInfo> tensors, const Metadata& metadata) {
  const std::string no_hash(kHashDigits, '0');
  const std::map<std::string, std::string> texts = {
      {"format", "gemma"}, {"gemma", to_json(metadata)}, {"header_hash", no_hash}};
  std::string header = serialize_header(tensors, texts, kWeightAlignment);
  const std::string place = "\"header_hash\":\"";
  header.replace(header.find(place) + place.size(), kHashDigits, header_hash(std::as_bytes(std::span(header))));
  return header;
}

}  // namespace

ModelFileWriter::ModelFileWriter(const std::filesystem::path& path, Metadata metadata, std::uint64_t tokenizer_bytes)
    : metadata_(std::move(metadata)),
      tensors_(model_file_tensors(metadata_.config, metadata_.types, tokenizer_bytes)),
      file_(path) {
  // Hashes have a fixed width, so the header's size is known before they are.
  for (const TensorInfo& tensor : tensors_) {
    metadata_.hashes[tensor.name] = std::string(kHashDigits, '0');
    size_ += tensor.bytes;
  }
  std::uint64_t offset = make_header(tensors_, metadata_).size();
  size_ += offset;

  std::error_code error;
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (!error && space.available < size_) {
    throw Error("cannot write " + in_quotes(path.native()) + ": it will take " + std::to_string(size_ >> 20) +
                " MiB, but only " + std::to_string(space.available >> 20) + " MiB are free there");
  }
  for (const TensorInfo& tensor : tensors_) {
    progress_.emplace(tensor.name, Progress{offset, tensor.bytes, Hasher()});
    if (tensor.name.ends_with(kPadSuffix)) {
      append(tensor.name, std::vector<std::byte>(static_cast<std::size_t>(tensor.bytes)));
    }
    offset += tensor.bytes;
  }
}

void ModelFileWriter::append(const std::string& tensor, std::span<const std::byte> bytes) {
  Progress& progress = progress_.at(tensor);
  assert(bytes.size() <= progress.remaining);
  file_.write(progress.offset, bytes);
  progress.hasher.update(bytes);
  progress.offset += bytes.size();
  progress.remaining -= bytes.size();
}

void ModelFileWriter::finish() {
  for (const auto& [tensor, progress] : progress_) {
    assert(progress.remaining == 0);
    metadata_.hashes[tensor] = progress.hasher.digits();
  }
  const std::string header = make_header(tensors_, metadata_);
  file_.write(0, std::as_bytes(std::span(header)));
  file_.commit();
}

void save_model(const Model& model, const std::filesystem::path& path) {
  Metadata metadata;
  metadata.config = model.config;
  metadata.defaults = model.defaults;
  metadata.types = model.weights.types();
  ModelFileWriter writer(path, std::move(metadata), model.tokenizer.size());
  struct Appender {
    ModelFileWriter& writer;
    void operator()(const std::string& name, const Matrix& matrix, int rows, int columns) const {
      const std::vector<MatrixPart> parts = parts_of(matrix.type, rows, columns);
      const std::vector<std::span<const std::byte>> bytes = bytes_of_parts(matrix);
      for (std::size_t i = 0; i < parts.size(); ++i) writer.append(name + std::string(parts[i].suffix), bytes[i]);
    }
    void operator()(const std::string& name, std::span<const float> norm, int) const {
      writer.append(name, std::as_bytes(norm));
    }
  };
  Weights weights = model.weights;
  visit_weights(model.config, weights, Appender{writer});
  writer.append("tokenizer", std::as_bytes(std::span(model.tokenizer)));
  writer.finish();
}

}  // namespace gemma
