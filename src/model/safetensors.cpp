#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "gemma/error.h"
#include "model/quote.h"

namespace gemma {
namespace {

constexpr std::uint64_t kLengthBytes = 8;               // the length of the header, little-endian
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct DTypeInfo {
  DType type;
  std::string_view name;
  std::size_t bytes;
};

constexpr std::array<DTypeInfo, 13> kDTypes = {{
    {DType::kBf16, "BF16", 2},
    {DType::kF16, "F16", 2},
    {DType::kF32, "F32", 4},
    {DType::kF64, "F64", 8},
    {DType::kI8, "I8", 1},
    {DType::kU8, "U8", 1},
    {DType::kI16, "I16", 2},
    {DType::kU16, "U16", 2},
    {DType::kI32, "I32", 4},
    {DType::kU32, "U32", 4},
    {DType::kI64, "I64", 8},
    {DType::kU64, "U64", 8},
    {DType::kBool, "BOOL", 1},
}};

const DTypeInfo& info_of(DType type) {
  return *std::find_if(kDTypes.begin(), kDTypes.end(), [type](const DTypeInfo& info) { return info.type == type; });
}

/// Receives the header's JSON as it is parsed: accepts only the form that the format prescribes, so that nothing else
/// is ever built in memory, and sees duplicate names, which a finished JSON object no longer shows.
///
///   {"__metadata__": {name: text, ...}, tensor: {"dtype": text, "shape": [n, ...], "data_offsets": [begin, end]}, ...}
class HeaderReader {
 public:
  using Json = nlohmann::json;

  std::vector<TensorInfo> tensors;  // offsets still from the start of the data
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() { return refuse("has a null where none may be"); }
  bool boolean(bool) { return refuse("has a boolean where none may be"); }
  bool number_integer(Json::number_integer_t) { return refuse("has a negative number"); }
  bool number_float(Json::number_float_t, const std::string&) { return refuse("has a number that is not whole"); }
  bool binary(Json::binary_t&) { return refuse("has binary data"); }

  bool number_unsigned(Json::number_unsigned_t value) {
    if (place_ == Place::kShape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return refuse("has a dimension of " + in_quotes(tensors.back().name) + " that is too large");
      }
      tensors.back().shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets && offset_count_ < offsets_.size()) {
      offsets_[offset_count_++] = value;
      return true;
    }
    return refuse("has a number where none may be");
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return refuse("has text where none may be");
    const auto known =
        std::find_if(kDTypes.begin(), kDTypes.end(), [&](const DTypeInfo& info) { return info.name == value; });
    if (known == kDTypes.end()) {
      return refuse("gives " + in_quotes(tensors.back().name) + " the type " + in_quotes(value) +
                    ", which is not supported");
    }
    tensors.back().type = known->type;
    return true;
  }

  bool start_object(std::size_t) {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        place_ = key_ == "__metadata__" ? Place::kMetadata : Place::kTensor;
        if (place_ == Place::kTensor) {
          tensors.push_back({.name = key_});
          members_.clear();
        }
        return true;
      default:
        return refuse("is nested too deeply");
    }
  }

  bool end_object() {
    if (place_ == Place::kTop) {
      place_ = Place::kStart;
      return true;
    }
    const bool was_tensor = place_ == Place::kTensor;
    place_ = Place::kTop;
    return was_tensor ? finish_tensor() : true;
  }

  bool start_array(std::size_t) {
    if (place_ != Place::kTensor || key_ == "dtype") return refuse("has a list where none may be");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    offset_count_ = 0;
    return true;
  }

  bool end_array() {
    if (place_ == Place::kOffsets && offset_count_ != offsets_.size()) {
      return refuse("does not give " + in_quotes(tensors.back().name) + " two data_offsets");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool key(std::string& name) {
    key_ = std::move(name);
    if (place_ == Place::kTop) {
      return names_.insert(key_).second || refuse("has the name " + in_quotes(key_) + " twice");
    }
    if (place_ == Place::kMetadata) {
      return !metadata.contains(key_) || refuse("has the metadata " + in_quotes(key_) + " twice");
    }
    if (key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
      return refuse("gives " + in_quotes(tensors.back().name) + " an unknown member " + in_quotes(key_));
    }
    return members_.insert(key_).second ||
           refuse("gives " + in_quotes(tensors.back().name) + " two members " + in_quotes(key_));
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) {
    return refuse("is not valid JSON in UTF-8 (at byte " + std::to_string(position) + ")");
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool refuse(std::string what) {
    problem = std::move(what);
    return false;
  }

  bool finish_tensor() {
    TensorInfo& tensor = tensors.back();
    if (members_.size() != 3)
      return refuse("does not give " + in_quotes(tensor.name) + " a dtype, a shape and data_offsets");
    std::uint64_t bytes = bytes_of(tensor.type);
    for (const std::int64_t dimension : tensor.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dimension), &bytes)) {
        return refuse("gives " + in_quotes(tensor.name) + " a shape that is too large");
      }
    }
    if (offsets_[1] < offsets_[0] || offsets_[1] - offsets_[0] != bytes) {
      return refuse("gives " + in_quotes(tensor.name) + " offsets that do not agree with its shape and type");
    }
    tensor.offset = offsets_[0];
    tensor.bytes = bytes;
    return true;
  }

  Place place_ = Place::kStart;
  std::string key_;                // the newest
  std::set<std::string> names_;    // of the top object
  std::set<std::string> members_;  // of the tensor being read
  std::array<std::uint64_t, 2> offsets_{};
  std::size_t offset_count_ = 0;
};

}  // namespace

std::size_t bytes_of(DType type) { return info_of(type).bytes; }

std::string_view name_of(DType type) { return info_of(type).name; }

std::string to_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t dimension : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dimension);
  return text + "]";
}

SafetensorsHeader SafetensorsHeader::parse(std::span<const std::byte> bytes, std::uint64_t file_size,
                                           const std::string& name) {
  auto fail = [&name](const std::string& problem) -> void {
    throw Error("cannot load " + in_quotes(name) + ": " + problem +
                ". It is damaged, incompletely downloaded, or not a safetensors file.");
  };

  if (file_size < kLengthBytes || bytes.size() < kLengthBytes) fail("it is too short to have a header");
  std::uint64_t length = 0;
  for (std::uint64_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxHeaderBytes || length > file_size - kLengthBytes || length > bytes.size() - kLengthBytes) {
    fail("it claims a header of " + std::to_string(length) + " bytes, which it cannot have");
  }

  const std::span<const std::byte> text = bytes.subspan(kLengthBytes, static_cast<std::size_t>(length));
  if (text.empty() || text.front() != std::byte{'{'}) fail("its header does not begin with '{'");
  const char* begin = reinterpret_cast<const char*>(text.data());
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(begin, begin + text.size(), &reader)) fail("its header " + reader.problem);

  SafetensorsHeader header;
  header.tensors = std::move(reader.tensors);
  header.metadata = std::move(reader.metadata);
  header.data_offset = kLengthBytes + length;

  // By end as well, so that an empty tensor comes before the one that begins where it lies.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  const std::uint64_t data_bytes = file_size - header.data_offset;
  std::uint64_t end = 0;
  for (TensorInfo& tensor : header.tensors) {
    if (tensor.offset < end) fail("tensor " + in_quotes(tensor.name) + " overlaps the one before it");
    if (tensor.offset > end) fail("there is a hole before tensor " + in_quotes(tensor.name));
    if (tensor.bytes > data_bytes - end) fail("tensor " + in_quotes(tensor.name) + " ends beyond the end of the file");
    end += tensor.bytes;
    tensor.offset += header.data_offset;
  }
  if (end != data_bytes) fail(std::to_string(data_bytes - end) + " bytes follow the last tensor");
  return header;
}

const TensorInfo* SafetensorsHeader::find(std::string_view tensor) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [tensor](const TensorInfo& info) { return info.name == tensor; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string serialize_header(std::span<const TensorInfo> tensors, const std::map<std::string, std::string>& metadata,
                             std::size_t alignment) {
  nlohmann::ordered_json json;
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    json[tensor.name] = {
        {"dtype", name_of(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes}}};
    offset += tensor.bytes;
  }
  std::string text = json.dump();
  const std::size_t size = kLengthBytes + text.size();
  text.append((alignment - size % alignment) % alignment, ' ');

  std::string header(kLengthBytes, '\0');
  for (std::uint64_t i = 0; i < kLengthBytes; ++i) {
    header[i] = static_cast<char>((static_cast<std::uint64_t>(text.size()) >> (8 * i)) & 0xff);
  }
  return header + text;
}

}  // namespace gemma
