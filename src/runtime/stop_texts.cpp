#include "runtime/stop_texts.h"

#include <algorithm>
#include <utility>

namespace gemma {

std::string StopTexts::push(std::string_view text) {
  if (is_found_) return {};
  held_ += text;

  std::size_t stop = std::string::npos;
  for (const std::string& candidate : texts_) stop = std::min(stop, held_.find(candidate));
  if (stop != std::string::npos) {
    is_found_ = true;
    held_.resize(stop);
    return std::exchange(held_, {});
  }

  // The longest end of the text that begins some stop text has to wait.
  std::size_t waiting = 0;
  for (const std::string& candidate : texts_) {
    for (std::size_t length = std::min(candidate.size() - 1, held_.size()); length > waiting; --length) {
      if (std::string_view(held_).ends_with(std::string_view(candidate).substr(0, length))) waiting = length;
    }
  }
  std::string certain = held_.substr(0, held_.size() - waiting);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopTexts::finish() { return std::exchange(held_, {}); }

}  // namespace gemma
