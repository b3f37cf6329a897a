#include "cli/pieces.h"

namespace gemma::cli {

std::string visible(const std::string& piece) {
  constexpr const char* kDigits = "0123456789ABCDEF";
  std::string text;
  for (const char character : piece) {
    const auto byte = static_cast<unsigned char>(character);
    if (character == '\n') {
      text += "\\n";
    } else if (character == '\t') {
      text += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      text += std::string("\\x") + kDigits[byte >> 4] + kDigits[byte & 0xF];
    } else {
      text += character;
    }
  }
  return text;
}

}  // namespace gemma::cli
