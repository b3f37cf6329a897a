#include "model/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "gemma/error.h"
#include "model/quote.h"

namespace gemma {

InputFile::InputFile(const std::filesystem::path& path) : name_(path.string()) {
  // Without O_NONBLOCK a named pipe would make this wait for a writer.
  descriptor_ = FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!descriptor_.is_open()) {
    throw Error("cannot open " + in_quotes(name_) + ": " + std::generic_category().message(errno));
  }
  struct stat status {};
  if (::fstat(descriptor(), &status) != 0) {
    throw Error("cannot open " + in_quotes(name_) + ": " + std::generic_category().message(errno));
  }
  if (S_ISDIR(status.st_mode)) throw Error("cannot open " + in_quotes(name_) + ": it is a directory, not a file");
  if (!S_ISREG(status.st_mode)) throw Error("cannot open " + in_quotes(name_) + ": it is not a regular file");
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const ssize_t count = ::pread(descriptor(), into.data(), into.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error("cannot read " + in_quotes(name_) + ": " + std::generic_category().message(errno));
    if (count == 0) throw Error("cannot read " + in_quotes(name_) + ": it became shorter while it was being read");
    into = into.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

bool InputFile::starts_with(std::string_view text) const {
  if (size_ < text.size()) return false;
  std::string start(text.size(), '\0');
  read(0, std::as_writable_bytes(std::span(start)));
  return start == text;
}

std::string read_small_file(const std::filesystem::path& path, std::uint64_t limit) {
  const InputFile file(path);
  if (file.size() > limit) {
    throw Error("cannot read " + in_quotes(file.name()) + ": it has " + std::to_string(file.size()) +
                " bytes, but a file of this kind has at most " + std::to_string(limit));
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace gemma
