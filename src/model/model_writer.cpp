#include "model/model_writer.h"

#include <cassert>
#include <utility>

#include "gemma/error.h"
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
      tensors_(model_file_tensors(metadata_.config, metadata_.type, tokenizer_bytes)),
      file_(path) {
  // Hashes have a fixed width, so the header's size is known before they are.
  for (const TensorInfo& tensor : tensors_) {
    metadata_.hashes[tensor.name] = std::string(kHashDigits, '0');
    size_ += tensor.bytes;
  }
  offset_ = make_header(tensors_, metadata_).size();
  size_ += offset_;

  std::error_code error;
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (!error && space.available < size_) {
    throw Error("cannot write " + in_quotes(path.native()) + ": it will take " + std::to_string(size_ >> 20) +
                " MiB, but only " + std::to_string(space.available >> 20) + " MiB are free there");
  }
  remaining_ = tensors_.front().bytes;
}

void ModelFileWriter::write(std::span<const std::byte> bytes) {
  file_.write(offset_, bytes);
  hasher_.update(bytes);
  offset_ += bytes.size();
  remaining_ -= bytes.size();
}

void ModelFileWriter::finish_full_tensors() {
  while (remaining_ == 0 && tensor_ < tensors_.size()) {
    metadata_.hashes[tensors_[tensor_].name] = std::exchange(hasher_, Hasher()).digits();
    if (++tensor_ == tensors_.size()) break;
    remaining_ = tensors_[tensor_].bytes;
    if (tensors_[tensor_].name.ends_with(".pad")) write(std::vector<std::byte>(static_cast<std::size_t>(remaining_)));
  }
}

void ModelFileWriter::append(std::span<const std::byte> bytes) {
  assert(bytes.size() <= remaining_);
  write(bytes);
  finish_full_tensors();
}

void ModelFileWriter::finish() {
  finish_full_tensors();
  assert(tensor_ == tensors_.size());
  const std::string header = make_header(tensors_, metadata_);
  file_.write(0, std::as_bytes(std::span(header)));
  file_.commit();
}

void save_model(const Model& model, const std::filesystem::path& path) {
  Metadata metadata;
  metadata.config = model.config;
  metadata.defaults = model.defaults;
  ModelFileWriter writer(path, std::move(metadata), model.tokenizer.size());
  struct Appender {
    ModelFileWriter& writer;
    void operator()(const std::string&, const Matrix& matrix, int, int) const {
      writer.append({reinterpret_cast<const std::byte*>(matrix.data), static_cast<std::size_t>(matrix.bytes())});
    }
    void operator()(const std::string&, std::span<const float> norm, int) const { writer.append(std::as_bytes(norm)); }
  };
  Weights weights = model.weights;
  visit_weights(model.config, weights, Appender{writer});
  writer.append(std::as_bytes(std::span(model.tokenizer)));
  writer.finish();
}

}  // namespace gemma
