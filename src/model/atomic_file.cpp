#include "model/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "gemma/error.h"
#include "model/quote.h"

namespace gemma {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, int error) {
  throw Error("cannot write " + in_quotes(path.native()) + ": " + std::generic_category().message(error));
}

// A link is followed to the file that it names, so that the link itself stays.
std::filesystem::path final_target(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return path;
  std::filesystem::path target = std::filesystem::weakly_canonical(path, error);
  if (error) fail(path, error.value());
  return target;
}

}  // namespace

AtomicFile::AtomicFile(const std::filesystem::path& path, std::string tag) : path_(final_target(path)) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path_, error);
  if (std::filesystem::is_directory(status)) {
    throw Error("cannot write " + in_quotes(path.native()) + ": it is a directory; give the name of a file");
  }
  // Renaming over a device such as /dev/null would replace it.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw Error("cannot write " + in_quotes(path.native()) + ": it is not a regular file");
  }
  if (path_.filename().empty()) throw Error("cannot write " + in_quotes(path.native()) + ": it does not name a file");

  temporary_ = path_;
  if (tag.empty()) tag = std::to_string(::getpid());
  temporary_.replace_filename(std::string(".").append(path_.filename()).append(".").append(tag).append(".tmp"));
  descriptor_ = FileDescriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666));
  if (!descriptor_.is_open()) fail(path_, errno);
}

AtomicFile::~AtomicFile() {
  if (!is_committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_.get()) != 0) fail(path_, errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, errno);
  is_committed_ = true;

  // The new name itself lives in the folder. Some file systems cannot do this; the file is complete all the same.
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  const FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.is_open()) ::fsync(descriptor.get());
}

}  // namespace gemma
