#include "cli/typed_text.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "tokenizer/utf8.h"

namespace gemma::cli {
namespace {

constexpr std::string_view kQuotes = "\"\"\"";

// Where a line opens a block: at its beginning, or behind a command and a space.
std::size_t find_opening(const std::string& line) {
  if (line.starts_with(kQuotes)) return 0;
  if (!line.starts_with('/')) return std::string::npos;
  const std::size_t space = line.find(' ');
  return space != std::string::npos && line.find(kQuotes, space) == space + 1 ? space + 1 : std::string::npos;
}

}  // namespace

std::optional<std::string> TypedText::push(const std::string& line) {
  std::string_view rest = line;
  if (!is_open_) {
    const std::size_t opening = find_opening(line);
    is_block_ = opening != std::string::npos;
    if (is_block_) {
      text_ = line.substr(0, opening);
      rest.remove_prefix(opening + kQuotes.size());
    }
  } else if (is_block_) {
    text_ += '\n';
  }
  const std::string_view ending = is_block_ ? kQuotes : "\\";
  const bool has_ending = rest.ends_with(ending);
  text_ += has_ending ? rest.substr(0, rest.size() - ending.size()) : rest;
  if (has_ending && !is_block_) text_ += '\n';
  is_open_ = has_ending != is_block_;
  if (is_open_) return std::nullopt;
  std::string whole = std::move(text_);
  clear();
  return whole;
}

void TypedText::clear() {
  text_.clear();
  is_open_ = false;
}

Wish understand(const std::string& text) {
  if (!text.starts_with('/')) return {"", text};
  const bool is_one_line = text.find('\n') == std::string::npos;
  if (text.starts_with("//") && is_one_line) return {"", text.substr(1)};
  const std::size_t end = std::min(text.find_first_of(" \t\n"), text.size());
  const std::string name = text.substr(1, end - 1);
  const auto is_letter = [](char letter) { return 'a' <= letter && letter <= 'z'; };
  if (name.empty() || !std::all_of(name.begin(), name.end(), is_letter)) return {"", text};
  return {name, std::string(trim(std::string_view(text).substr(end)))};
}

std::string expand_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  if (home == nullptr || (path != "~" && !path.starts_with("~/"))) return path;
  return home + path.substr(1);
}

}  // namespace gemma::cli
