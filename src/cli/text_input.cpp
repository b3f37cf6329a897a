#include "cli/text_input.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "cli/terminal.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

std::string read_all(std::istream& stream, const std::string& name) {
  errno = 0;
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (stream.bad() || errno != 0) throw Error("cannot read " + name + ": " + std::strerror(errno));
  return text;
}

}  // namespace

std::string read_file(const std::string& path) {
  if (path == "-") return read_standard_input("the text", false);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw Error("cannot read '" + path + "': it is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot open '" + path + "': " + std::strerror(errno));
  return read_all(file, "'" + path + "'");
}

std::string read_standard_input(const std::string& what, bool quiet) {
  if (!quiet && is_terminal(STDIN_FILENO)) print_note("Reading " + what + " from the terminal; end it with Ctrl-D.");
  return read_all(std::cin, "standard input");
}

std::string without_last_line_break(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

}  // namespace gemma::cli
