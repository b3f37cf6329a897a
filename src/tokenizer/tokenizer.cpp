#include "gemma/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "gemma/error.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/utf8.h"

namespace gemma {
namespace {

constexpr std::string_view kSpacePiece = "\u2581";

std::string with_spaces(std::string_view piece) {
  std::string text;
  text.reserve(piece.size());
  for (std::size_t at = 0; at < piece.size();) {
    const std::size_t space = std::min(piece.find(kSpacePiece, at), piece.size());
    text.append(piece, at, space - at);
    if (space < piece.size()) text += ' ';
    at = space + kSpacePiece.size();
  }
  return text;
}

int hex_digit(char digit) { return digit <= '9' ? digit - '0' : digit - 'A' + 10; }

// The byte that a piece like `<0x0A>` stands for; SentencePiece has checked its form.
char byte_of(std::string_view piece) { return static_cast<char>(hex_digit(piece.at(3)) * 16 + hex_digit(piece.at(4))); }

// Moves the characters that are complete from the front of `bytes` to the end of `text`, and U+FFFD for bytes that
// belong to none. What stays is the beginning of a character.
void move_characters(std::string& bytes, std::string& text) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Character character = first_character(rest);
    if (character.status == Utf8Status::kIncomplete) break;
    if (character.status == Utf8Status::kComplete) {
      text.append(rest, 0, character.bytes);
      rest.remove_prefix(character.bytes);
    } else {
      text.append(kReplacementCharacter);
      rest.remove_prefix(1);
    }
  }
  bytes.erase(0, bytes.size() - rest.size());
}

void replace_bytes(std::string& bytes, std::string& text) {
  for (std::size_t i = 0; i < bytes.size(); ++i) text.append(kReplacementCharacter);
  bytes.clear();
}

}  // namespace

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::pair<std::string, int>> control_names;  // longest first
  int bos = -1;
  int eos = -1;
  int start_of_turn = -1;
  int end_of_turn = -1;

  void check(int id) const {
    if (id >= 0 && id < processor.GetPieceSize()) return;
    throw Error("token " + std::to_string(id) + " does not exist: this model's tokens are 0 to " +
                std::to_string(processor.GetPieceSize() - 1));
  }

  bool is_control(int id) const { return processor.IsControl(id) || processor.IsUnknown(id); }

  int find_control(std::string_view name) const {
    const auto match = std::find_if(control_names.begin(), control_names.end(),
                                    [name](const auto& control) { return control.first == name; });
    return match == control_names.end() ? -1 : match->second;
  }

  // The first control token's name in the text: where it begins, and which it is.
  std::pair<std::size_t, const std::pair<std::string, int>*> next_control(std::string_view text) const {
    for (std::size_t at = text.find_first_of("<["); at < text.size(); at = text.find_first_of("<[", at + 1)) {
      for (const auto& control : control_names) {
        if (text.substr(at).starts_with(control.first)) return {at, &control};
      }
    }
    return {text.size(), nullptr};
  }

  void append_ids(std::string_view text, std::vector<int>& ids) const {
    if (text.empty()) return;
    std::vector<int> encoded;
    const sentencepiece::util::Status status = processor.Encode(text, &encoded);
    if (!status.ok()) throw Error("cannot tokenise the text: " + status.ToString());
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  }

  // Adds what a token says to `text`, where `pending` holds the bytes of a character that is not complete yet.
  void append_text(int id, std::string& pending, std::string& text) const {
    check(id);
    if (processor.IsByte(id)) {
      pending += byte_of(processor.IdToPiece(id));
      move_characters(pending, text);
      return;
    }
    replace_bytes(pending, text);
    if (!is_control(id)) text += with_spaces(processor.IdToPiece(id));
  }
};

Tokenizer::Tokenizer(std::string_view model) {
  auto state = std::make_unique<State>();
  const std::string prepared = withhold_control_pieces(model);
  try {
    const sentencepiece::util::Status status = state->processor.LoadFromSerializedProto(prepared);
    if (!status.ok()) throw Error("the tokenizer is damaged: " + status.ToString());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(std::string("the tokenizer is damaged: ") + error.what());
  }
  for (int id = 0; id < state->processor.GetPieceSize(); ++id) {
    if (state->is_control(id)) state->control_names.emplace_back(state->processor.IdToPiece(id), id);
  }
  std::stable_sort(state->control_names.begin(), state->control_names.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  state->bos = state->find_control("<bos>");
  state->eos = state->find_control("<eos>");
  if (state->bos < 0 || state->eos < 0)
    throw Error("the tokenizer is not one that Gemma uses: it has no <bos> or no <eos>");
  state->start_of_turn = state->find_control("<start_of_turn>");
  state->end_of_turn = state->find_control("<end_of_turn>");
  state_ = std::move(state);
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int> Tokenizer::encode(std::string_view text, ControlTokens control) const {
  require_utf8(text);
  // SentencePiece counts symbols in int.
  if (text.size() > std::numeric_limits<int>::max()) throw Error("the text is too long: more than 2 GiB");
  std::vector<int> ids;
  while (control == ControlTokens::kParse) {
    const auto [offset, name] = state_->next_control(text);
    if (name == nullptr) break;
    state_->append_ids(text.substr(0, offset), ids);
    ids.push_back(name->second);
    text.remove_prefix(offset + name->first.size());
  }
  state_->append_ids(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const int> ids) const {
  std::string text;
  std::string pending;
  for (const int id : ids) state_->append_text(id, pending, text);
  replace_bytes(pending, text);
  return text;
}

std::string Tokenizer::piece(int id) const {
  state_->check(id);
  return state_->processor.IdToPiece(id);
}

int Tokenizer::size() const { return state_->processor.GetPieceSize(); }

bool Tokenizer::is_control(int id) const {
  state_->check(id);
  return state_->is_control(id);
}

int Tokenizer::bos() const { return state_->bos; }
int Tokenizer::eos() const { return state_->eos; }
int Tokenizer::start_of_turn() const { return state_->start_of_turn; }
int Tokenizer::end_of_turn() const { return state_->end_of_turn; }

std::string StreamingDetokenizer::push(int id) {
  std::string text;
  tokenizer_->state_->append_text(id, pending_, text);
  return text;
}

std::string StreamingDetokenizer::finish() {
  std::string text;
  replace_bytes(pending_, text);
  return text;
}

}  // namespace gemma
