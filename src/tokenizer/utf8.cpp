#include "tokenizer/utf8.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <string>

#include "gemma/error.h"

namespace gemma {
namespace {

// Lead bytes from `first` on begin characters of `length` bytes whose second byte lies in [low, high].
struct LeadByte {
  unsigned char first;
  std::size_t length;
  unsigned char low;
  unsigned char high;
};

constexpr std::array<LeadByte, 11> kLeadBytes = {{
    {0x00, 1, 0x00, 0x00},
    {0x80, 0, 0x00, 0x00},
    {0xC2, 2, 0x80, 0xBF},
    {0xE0, 3, 0xA0, 0xBF},
    {0xE1, 3, 0x80, 0xBF},
    {0xED, 3, 0x80, 0x9F},
    {0xEE, 3, 0x80, 0xBF},
    {0xF0, 4, 0x90, 0xBF},
    {0xF1, 4, 0x80, 0xBF},
    {0xF4, 4, 0x80, 0x8F},
    {0xF5, 0, 0x00, 0x00},
}};

const LeadByte& lead_byte(unsigned char byte) {
  return *std::find_if(kLeadBytes.rbegin(), kLeadBytes.rend(),
                       [byte](const LeadByte& lead) { return lead.first <= byte; });
}

constexpr std::array<std::string_view, 29> kWhiteSpace = {
    " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1C",   "\x1D",   "\x1E",   "\x1F",
    "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
    "\u2007", "\u2008", "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000",
};

}  // namespace

Utf8Character first_character(std::string_view text) {
  assert(!text.empty());
  const auto byte = [text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
  const LeadByte& lead = lead_byte(byte(0));
  if (lead.length == 0) return {Utf8Status::kInvalid, 0};
  for (std::size_t i = 1; i < std::min(lead.length, text.size()); ++i) {
    const bool fits = i == 1 ? lead.low <= byte(i) && byte(i) <= lead.high : (byte(i) & 0xC0u) == 0x80u;
    if (!fits) return {Utf8Status::kInvalid, 0};
  }
  if (text.size() < lead.length) return {Utf8Status::kIncomplete, 0};
  return {Utf8Status::kComplete, lead.length};
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t offset = 0; offset < text.size();) {
    const Utf8Character character = first_character(text.substr(offset));
    if (character.status != Utf8Status::kComplete) return offset;
    offset += character.bytes;
  }
  return std::string_view::npos;
}

void require_utf8(std::string_view text) {
  const std::size_t offset = find_invalid_utf8(text);
  if (offset == std::string_view::npos) return;
  throw Error("the text is not valid UTF-8: bad byte at offset " + std::to_string(offset) +
              "; convert it first, for example with iconv -t UTF-8");
}

std::string_view trim(std::string_view text) {
  const auto find = [](auto is_at_edge) { return std::find_if(kWhiteSpace.begin(), kWhiteSpace.end(), is_at_edge); };
  const auto leads = [&text](std::string_view space) { return text.starts_with(space); };
  const auto trails = [&text](std::string_view space) { return text.ends_with(space); };
  for (auto space = find(leads); space != kWhiteSpace.end(); space = find(leads)) text.remove_prefix(space->size());
  for (auto space = find(trails); space != kWhiteSpace.end(); space = find(trails)) text.remove_suffix(space->size());
  return text;
}

}  // namespace gemma
