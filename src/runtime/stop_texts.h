#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemma {

/// Looks for stop texts in an answer that comes in pieces, and holds back what may turn out to be the start of one.
class StopTexts {
 public:
  /// @param texts  none empty.
  explicit StopTexts(std::vector<std::string> texts) : texts_(std::move(texts)) {}

  /// @return the text that is certain now not to belong to a stop text; may be empty.
  std::string push(std::string_view text);

  /// @return what is still held back, when no more text comes.
  std::string finish();

  /// Whether a stop text has been found. What came before it has been returned; it and all after it never will be.
  bool found() const { return is_found_; }

 private:
  std::vector<std::string> texts_;
  std::string held_;
  bool is_found_ = false;
};

}  // namespace gemma
