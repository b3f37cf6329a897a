#include "cli/text_input.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "cli/terminal.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

[[noreturn]] void fail_too_long(const std::string& name, std::size_t most_bytes) {
  throw Error("cannot read " + name + ": it has more than " + std::to_string(most_bytes >> 20) +
              " MiB, which is too long; give a part of it");
}

std::string read_all(std::istream& stream, const std::string& name, std::size_t most_bytes) {
  constexpr std::size_t kBlock = std::size_t{1} << 16;
  std::string text;
  errno = 0;
  while (stream.good()) {
    const std::size_t size = text.size();
    if (size > most_bytes) fail_too_long(name, most_bytes);
    text.resize(size + kBlock);
    stream.read(text.data() + size, kBlock);
    text.resize(size + static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad() || errno != 0) throw Error("cannot read " + name + ": " + std::strerror(errno));
  if (text.size() > most_bytes) fail_too_long(name, most_bytes);
  return text;
}

}  // namespace

std::string read_file(const std::string& path, std::size_t most_bytes) {
  if (path == "-") return read_standard_input("the text", false, most_bytes);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw Error("cannot read '" + path + "': it is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot open '" + path + "': " + std::strerror(errno));
  return read_all(file, "'" + path + "'", most_bytes);
}

std::string read_standard_input(const std::string& what, bool quiet, std::size_t most_bytes) {
  if (!quiet && is_terminal(STDIN_FILENO)) print_note("Reading " + what + " from the terminal; end it with Ctrl-D.");
  return read_all(std::cin, "standard input", most_bytes);
}

std::string without_last_line_break(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

}  // namespace gemma::cli
