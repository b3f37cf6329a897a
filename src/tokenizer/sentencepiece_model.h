#pragma once

#include <string>
#include <string_view>

namespace gemma {

/// A copy of a serialised SentencePiece model in which the pieces that only a program may write have become control
/// pieces, so that SentencePiece no longer makes them from text. Everything else is as it was, and so are all ids.
///
/// These pieces are known by their names, since the model marks them like newline runs or HTML tags, as "user defined":
/// `<pad> <eos> <bos> <mask> <2mass> <start_of_turn> <end_of_turn> [@BOS@] [multimodal]` and `<unusedN>`.
///
/// @throws Error if the model is damaged, or is not made like Gemma's: BPE, no normalisation table, no space put in
/// front,
///         no spaces removed.
std::string withhold_control_pieces(std::string_view model);

}  // namespace gemma
