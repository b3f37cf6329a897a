#pragma once

#include <cstddef>
#include <string_view>

namespace gemma {

enum class Utf8Status {
  kComplete,    ///< a character
  kIncomplete,  ///< the beginning of one: more bytes may complete it
  kInvalid,     ///< no bytes that follow can make the first byte part of a character
};

struct Utf8Character {
  Utf8Status status = Utf8Status::kInvalid;
  std::size_t bytes = 0;  ///< length of a complete character, else 0
};

/// What a text begins with, by the Unicode standard's table 3-7: no overlong forms, no surrogates, nothing above
/// U+10FFFF.
/// @param text  not empty.
Utf8Character first_character(std::string_view text);

/// Offset of the first byte that is not part of a character; npos if the text is valid UTF-8.
std::size_t find_invalid_utf8(std::string_view text);

/// @throws Error naming the offset of the first byte that is not part of a character.
void require_utf8(std::string_view text);

/// U+FFFD, what stands for a byte that is not text.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

/// Without the white space around it, as Python's str.strip (and so the chat template) understands white space.
/// @param text  valid UTF-8.
std::string_view trim(std::string_view text);

}  // namespace gemma
