#include "tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "gemma/error.h"
#include "tokenizer/utf8.h"

namespace gemma {
namespace {

// Field numbers and values of sentencepiece_model.proto.
constexpr std::uint64_t kModelPieces = 1;
constexpr std::uint64_t kModelTrainer = 2;
constexpr std::uint64_t kModelNormalizer = 3;
constexpr std::uint64_t kModelSelfTest = 4;
constexpr std::uint64_t kModelDenormalizer = 5;
constexpr std::uint64_t kPieceName = 1;
constexpr std::uint64_t kPieceType = 3;
constexpr std::uint64_t kTrainerModelType = 3;
constexpr std::uint64_t kTrainerModelTypeBpe = 2;
constexpr std::uint64_t kNormalizerTable = 2;
constexpr std::uint64_t kNormalizerAddsDummyPrefix = 3;
constexpr std::uint64_t kNormalizerRemovesSpaces = 4;
constexpr std::uint64_t kNormalizerEscapesSpaces = 5;
constexpr std::uint64_t kControlType = 3;

// SentencePiece's trie is built by recursion over a piece's bytes. Gemma's longest pieces have about a hundred.
constexpr std::size_t kMaxPieceBytes = 1024;

constexpr std::array<std::string_view, 9> kControlNames = {
    "<pad>", "<eos>", "<bos>", "<mask>", "<2mass>", "<start_of_turn>", "<end_of_turn>", "[@BOS@]", "[multimodal]",
};

bool is_control_name(std::string_view name) {
  if (std::find(kControlNames.begin(), kControlNames.end(), name) != kControlNames.end()) return true;
  constexpr std::string_view kUnused = "<unused";
  if (!name.starts_with(kUnused) || !name.ends_with('>')) return false;
  const std::string_view number = name.substr(kUnused.size(), name.size() - kUnused.size() - 1);
  return !number.empty() && number.find_first_not_of("0123456789") == std::string_view::npos;
}

[[noreturn]] void refuse(const std::string& why) { throw Error("the tokenizer is not one that Gemma uses: " + why); }

struct Field {
  std::uint64_t number = 0;
  std::uint64_t value = 0;      // of a varint
  std::string_view content;     // of a length-delimited field
  std::string_view serialized;  // all of it, tag included
};

// Walks over the fields of a serialised protobuf message.
class MessageReader {
 public:
  explicit MessageReader(std::string_view message) : rest_(message) {}

  bool is_done() const { return rest_.empty(); }

  Field next() {
    const std::string_view start = rest_;
    Field field;
    const std::uint64_t tag = varint();
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        field.content = take(varint());
        break;
      case 5:
        take(4);
        break;
      default:
        damaged();
    }
    field.serialized = start.substr(0, start.size() - rest_.size());
    return field;
  }

 private:
  [[noreturn]] static void damaged() {
    throw Error("the tokenizer is damaged: it is not a serialised SentencePiece model");
  }

  std::string_view take(std::uint64_t bytes) {
    if (bytes > rest_.size()) damaged();
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }

  std::string_view rest_;
};

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

std::string_view checked_name(std::string_view piece) {
  std::string_view name;
  for (MessageReader reader(piece); !reader.is_done();) {
    const Field field = reader.next();
    if (field.number == kPieceName) name = field.content;
  }
  if (name.size() > kMaxPieceBytes) refuse("it has a piece of " + std::to_string(name.size()) + " bytes");
  if (find_invalid_utf8(name) != std::string_view::npos) refuse("it has a piece that is not valid UTF-8");
  return name;
}

// In a serialised message the last value of a field counts, so a type at the end overrides the one before.
void append_as_control(std::string& out, std::string_view piece) {
  std::string type;
  append_varint(type, kPieceType << 3);
  append_varint(type, kControlType);
  append_varint(out, kModelPieces << 3 | 2);
  append_varint(out, piece.size() + type.size());
  out.append(piece).append(type);
}

struct Normalizer {
  bool has_table = false;
  bool adds_dummy_prefix = true;
  bool removes_spaces = true;
  bool escapes_spaces = true;

  void read(std::string_view message) {
    for (MessageReader reader(message); !reader.is_done();) {
      const Field field = reader.next();
      if (field.number == kNormalizerTable) has_table = !field.content.empty();
      if (field.number == kNormalizerAddsDummyPrefix) adds_dummy_prefix = field.value != 0;
      if (field.number == kNormalizerRemovesSpaces) removes_spaces = field.value != 0;
      if (field.number == kNormalizerEscapesSpaces) escapes_spaces = field.value != 0;
    }
  }
};

}  // namespace

std::string withhold_control_pieces(std::string_view model) {
  std::string out;
  out.reserve(model.size() + 1024);
  std::uint64_t model_type = 0;
  Normalizer normalizer;
  Normalizer denormalizer;
  for (MessageReader reader(model); !reader.is_done();) {
    const Field field = reader.next();
    switch (field.number) {
      case kModelPieces:
        if (is_control_name(checked_name(field.content))) {
          append_as_control(out, field.content);
          continue;
        }
        break;
      case kModelTrainer:
        for (MessageReader trainer(field.content); !trainer.is_done();) {
          const Field setting = trainer.next();
          if (setting.number == kTrainerModelType) model_type = setting.value;
        }
        break;
      case kModelNormalizer:
        normalizer.read(field.content);
        break;
      case kModelDenormalizer:
        denormalizer.read(field.content);
        break;
      case kModelSelfTest:
        continue;  // may expect the pieces that are withheld
      default:
        break;
    }
    out.append(field.serialized);
  }
  if (model_type != kTrainerModelTypeBpe) refuse("its pieces are not made by byte-pair encoding");
  // SentencePiece uses such a table without checking it, so a hostile one would be dangerous besides being foreign.
  if (normalizer.has_table || denormalizer.has_table) refuse("it normalises text with a table");
  if (normalizer.adds_dummy_prefix) refuse("it puts a space in front of every text");
  if (normalizer.removes_spaces) refuse("it removes spaces");
  if (!normalizer.escapes_spaces) refuse("it does not write spaces as U+2581");
  return out;
}

}  // namespace gemma
