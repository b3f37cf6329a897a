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
class Tokenizer {
 public:
  /// @param model  a serialised SentencePiece model (the contents of a tokenizer.model file); need not outlive the call.
  /// @throws Error if it is not one.
  explicit Tokenizer(std::string_view model);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Ids of a text, without a leading `<bos>`.
  /// @throws Error if `text` is not valid UTF-8, naming the offset of the first bad byte.
  std::vector<int> encode(std::string_view text, ControlTokens control = ControlTokens::kAsText) const;

  /// The text of some ids, bytes as they are: byte pieces may make it invalid UTF-8. Control tokens are left out.
  std::string decode(std::span<const int> ids) const;

  /// One id's piece as SentencePiece spells it (`▁Once`, `<0x0A>`, `<bos>`).
  /// @throws Error if the id is not in [0, size()).
  std::string piece(int id) const;

  int size() const;              ///< number of pieces
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

/// Turns tokens into text as they come. The texts joined are exactly Tokenizer::decode of all the ids, and each is whole
/// UTF-8 characters (until finish, which gives out what an unfinished character left).
class StreamingDetokenizer {
 public:
  /// @param tokenizer  must outlive this.
  explicit StreamingDetokenizer(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  std::string push(int id);  ///< the text that this token completes; may be empty
  std::string finish();      ///< the rest

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;       // bytes of a character that is not complete yet
  bool is_at_start_ = true;   // the first piece loses the leading space that SentencePiece may have added
};

}  // namespace gemma
