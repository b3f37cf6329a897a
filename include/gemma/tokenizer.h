#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma {

/// What to do with the names of control tokens (`<bos>`, `<start_of_turn>`, ...) that stand in a text.
enum class ControlTokens {
  kAsText,  ///< they are ordinary characters: text from outside can never forge a turn
  kParse,   ///< they become the tokens that they name
};

/// Text to token ids and back, as the model was trained: SentencePiece.
///
/// Control tokens are the pieces that the tokenizer itself marks as control or unknown, and those that Gemma's
/// tokenizer defines as ordinary vocabulary but the model reads as structure: `<start_of_turn>`, `<end_of_turn>`,
/// `<mask>`,
/// `<unused0>`, ... They are never made from text (unless asked for with kParse) and have no text of their own. Runs of
/// newlines and spaces, HTML tags and all other pieces match as trained.
///
/// Calls on a const tokenizer may come from several threads at once.
class Tokenizer {
 public:
  /// @param model  a serialised SentencePiece model (the contents of a tokenizer.model file); need not outlive the
  /// call.
  /// @throws Error if it is damaged, or is not made like Gemma's (BPE without normalisation and without a space put in
  ///         front).
  explicit Tokenizer(std::string_view model);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Ids of a text, without a leading `<bos>`.
  /// @throws Error if `text` is not valid UTF-8, naming the offset of the first bad byte.
  std::vector<int> encode(std::string_view text, ControlTokens control = ControlTokens::kAsText) const;

  /// The text of some ids: always valid UTF-8. Control tokens are left out. Byte pieces in a row make up characters;
  /// each byte that does not belong to one becomes U+FFFD, as SentencePiece does it.
  /// @throws Error if an id is not in [0, size()).
  std::string decode(std::span<const int> ids) const;

  /// One id's piece as SentencePiece spells it (`▁Once`, `<0x0A>`, `<bos>`).
  /// @throws Error if the id is not in [0, size()).
  std::string piece(int id) const;

  int size() const;               ///< number of pieces
  bool is_control(int id) const;  ///< `<bos>`, `<start_of_turn>`, ...: has no text of its own
  int bos() const;
  int eos() const;
  int start_of_turn() const;  ///< -1 if the tokenizer has none
  int end_of_turn() const;    ///< -1 if the tokenizer has none

 private:
  friend class StreamingDetokenizer;
  struct State;
  std::unique_ptr<const State> state_;
};

/// Turns tokens into text as they come. The texts joined are exactly Tokenizer::decode of all the ids, and each is
/// whole UTF-8 characters. Held back is at most the beginning of one character (three bytes) that later bytes may
/// complete.
class StreamingDetokenizer {
 public:
  /// @param tokenizer  must outlive this.
  explicit StreamingDetokenizer(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  /// The text that this token completes; may be empty.
  /// @throws Error if the id is not in [0, size()).
  std::string push(int id);

  /// The rest: U+FFFD for each byte of a character that stayed incomplete. The next push begins a new text.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  // the first bytes of a character that is not complete yet
};

}  // namespace gemma
