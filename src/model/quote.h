#pragma once

#include <string>
#include <string_view>

namespace gemma {

/// A name from outside as it may stand in a message: in quotes, and with control characters, which could play tricks on
/// a terminal, as question marks.
inline std::string in_quotes(std::string_view name) {
  std::string text = "'";
  for (const char letter : name) text += static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f ? '?' : letter;
  return text + "'";
}

}  // namespace gemma
