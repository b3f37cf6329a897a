#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace gemma::cli {

/// What was typed in earlier runs, oldest first: a file that only its owner can read, an entry a line, line breaks in
/// entries written as \n. It is a convenience: what cannot be read or written is passed over.
class InputHistory {
 public:
  static constexpr std::size_t kMostEntries = 1000;
  static constexpr std::size_t kLongestEntry = std::size_t{1} << 14;  ///< bytes; longer ones are not kept

  /// Reads the file. One with twice as many entries as are kept is cut down to the latest.
  /// @param file  empty: nothing is kept.
  explicit InputHistory(std::filesystem::path file);

  const std::vector<std::string>& entries() const { return entries_; }

  /// Puts an entry at the end, in the file at once: several chats may share it. One that repeats the last is left out.
  void add(const std::string& entry);

 private:
  std::filesystem::path file_;
  std::vector<std::string> entries_;
};

/// $XDG_STATE_HOME/gemma-run/chat_history, with ~/.local/state in place of an $XDG_STATE_HOME that is not set; empty
/// without a home.
std::filesystem::path default_history_file();

}  // namespace gemma::cli
