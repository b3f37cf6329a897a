#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/hash.h"
#include "model/input_file.h"

namespace gemma::cli {

/// A line of a file.
struct Line {
  std::string_view text;     ///< without its line break ("\n" or "\r\n"); valid until the next one is read
  std::uint64_t offset = 0;  ///< of its first byte in the file
  bool is_too_long = false;  ///< `text` has only its beginning
  bool is_complete = true;   ///< there is a line break behind it; only the last line may have none
};

/// Reads a file of any size line after line, in memory for one line of the longest kind.
class LineReader {
 public:
  static constexpr std::size_t kLargestBlock = std::size_t{1} << 20;

  /// @param file     must outlive this.
  /// @param longest  bytes that a line may have; more of a longer one is passed over
  /// @param block    bytes that are read at once
  LineReader(const InputFile& file, std::size_t longest, std::size_t block = kLargestBlock);

  /// @return whether there was one more line.
  /// @throws Error if the file cannot be read.
  bool next(Line& line);

  std::uint64_t bytes() const { return offset_; }        ///< of the lines so far, with their line breaks
  std::string hash() const { return hasher_.digits(); }  ///< of all that has been read; of the file once next() says no

 private:
  bool fill();  // reads one more block behind what is left; false at the end of the file

  const InputFile& file_;
  std::size_t longest_;
  std::size_t block_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0;  // the part of buffer_ that has not been given out
  std::size_t end_ = 0;
  std::uint64_t read_ = 0;    // bytes of the file in buffer_ or before it
  std::uint64_t offset_ = 0;  // of buffer_[begin_] in the file
  Hasher hasher_;
};

}  // namespace gemma::cli
