#pragma once

#include <string>
#include <string_view>

namespace gemma {

/// A text from outside with question marks for control characters, which could play tricks on a terminal.
inline std::string printable(std::string_view text) {
  std::string clean(text);
  for (char& letter : clean) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f) letter = '?';
  }
  return clean;
}

/// A name from outside as it may stand in a message: printable and in quotes.
inline std::string in_quotes(std::string_view name) {
  std::string text = "'";
  return text.append(printable(name)).append("'");
}

}  // namespace gemma
