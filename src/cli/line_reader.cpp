#include "cli/line_reader.h"

#include <algorithm>
#include <cstring>
#include <span>

namespace gemma::cli {

LineReader::LineReader(const InputFile& file, std::size_t longest, std::size_t block)
    : file_(file), longest_(longest), block_(block) {}

bool LineReader::fill() {
  const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(block_, file_.size() - read_));
  if (count == 0) return false;
  if (begin_ > 0) {
    std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(begin_),
              buffer_.begin() + static_cast<std::ptrdiff_t>(end_), buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_.size() < end_ + count) buffer_.resize(end_ + count);
  const auto bytes = std::as_writable_bytes(std::span(buffer_).subspan(end_, count));
  file_.read(read_, bytes);
  hasher_.update(bytes);
  read_ += count;
  end_ += count;
  return true;
}

bool LineReader::next(Line& line) {
  line = {.text = {}, .offset = offset_};
  std::size_t searched = 0;  // bytes of the line that have no line break
  std::size_t passed_over = 0;
  const char* line_break = nullptr;
  while (true) {
    if (begin_ + searched < end_) {
      const char* from = buffer_.data() + begin_ + searched;
      line_break = static_cast<const char*>(std::memchr(from, '\n', end_ - begin_ - searched));
      if (line_break != nullptr) break;
      searched = end_ - begin_;
    }
    if (searched > longest_) {
      line.is_too_long = true;
      passed_over += searched - longest_;
      end_ -= searched - longest_;
      searched = longest_;
    }
    if (!fill()) break;
  }
  if (line_break == nullptr && searched == 0) return false;

  line.is_complete = line_break != nullptr;
  const std::size_t size =
      line.is_complete ? static_cast<std::size_t>(line_break - (buffer_.data() + begin_)) : searched;
  line.text = {buffer_.data() + begin_, size};
  if (size > longest_) {
    line.is_too_long = true;
    line.text = line.text.substr(0, longest_);
  }
  if (!line.is_too_long && line.text.ends_with('\r')) line.text.remove_suffix(1);
  const std::size_t consumed = size + (line.is_complete ? 1 : 0);
  begin_ += consumed;
  offset_ += consumed + passed_over;
  return true;
}

}  // namespace gemma::cli
