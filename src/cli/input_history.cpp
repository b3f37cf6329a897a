#include "cli/input_history.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>

#include "model/file_descriptor.h"
#include "tokenizer/utf8.h"

namespace gemma::cli {
namespace {

constexpr std::uintmax_t kLargestFile = 64 << 20;

std::string escaped(const std::string& entry) {
  std::string line;
  for (const char letter : entry) {
    if (letter == '\n') {
      line += "\\n";
    } else if (letter == '\\') {
      line += "\\\\";
    } else {
      line += letter;
    }
  }
  return line + "\n";
}

std::string unescaped(std::string_view line) {
  std::string entry;
  for (std::size_t at = 0; at < line.size(); ++at) {
    const bool is_escape = line[at] == '\\' && at + 1 < line.size();
    if (is_escape) ++at;
    entry += is_escape && line[at] == 'n' ? '\n' : line[at];
  }
  return entry;
}

bool write_file(const std::filesystem::path& file, const std::string& text, int flags) {
  const FileDescriptor descriptor(::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600));
  return descriptor.is_open() &&
         ::write(descriptor.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// In one step, so that a chat that is starting beside this one never reads half of it.
void replace_file(const std::filesystem::path& file, const std::vector<std::string>& entries) {
  std::string text;
  for (const std::string& entry : entries) text += escaped(entry);
  std::filesystem::path temporary = file;
  temporary += "." + std::to_string(::getpid()) + ".tmp";
  std::error_code ignored;
  if (write_file(temporary, text, O_TRUNC | O_NOFOLLOW)) std::filesystem::rename(temporary, file, ignored);
  std::filesystem::remove(temporary, ignored);
}

}  // namespace

InputHistory::InputHistory(std::filesystem::path file) : file_(std::move(file)) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file_, error) || std::filesystem::file_size(file_, error) > kLargestFile)
    return;
  std::ifstream stream(file_, std::ios::binary);
  for (std::string line; std::getline(stream, line);) {
    if (find_invalid_utf8(line) == std::string_view::npos) entries_.push_back(unescaped(line));
  }
  const bool is_long = entries_.size() >= 2 * kMostEntries;
  if (entries_.size() > kMostEntries) entries_.erase(entries_.begin(), entries_.end() - kMostEntries);
  if (is_long) replace_file(file_, entries_);
}

void InputHistory::add(const std::string& entry) {
  if (entry.size() > kLongestEntry || (!entries_.empty() && entries_.back() == entry)) return;
  entries_.push_back(entry);
  if (file_.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(file_.parent_path(), ignored);
  write_file(file_, escaped(entry), O_APPEND);
}

std::filesystem::path default_history_file() {
  const auto folder = [](const char* name) {
    const char* value = std::getenv(name);
    // The specification of these folders says that a path which is not absolute is to be passed over.
    return std::filesystem::path(value != nullptr && *value == '/' ? value : "");
  };
  std::filesystem::path state = folder("XDG_STATE_HOME");
  if (state.empty() && !folder("HOME").empty()) state = folder("HOME") / ".local" / "state";
  return state.empty() ? state : state / "gemma-run" / "chat_history";
}

}  // namespace gemma::cli
