#include "cli/partial_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <system_error>

#include "cli/line_reader.h"
#include "cli/result_line.h"
#include "gemma/error.h"
#include "model/hash.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr std::size_t kHashSize = 16;
constexpr std::size_t kLongestLine = std::size_t{1} << 30;
constexpr std::chrono::seconds kSyncInterval{1};
constexpr const char* kMarker = "gemma-run batch";

std::string hash_of(std::string_view json) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::uint64_t hash = hash64(std::as_bytes(std::span(json)));
  std::string text(kHashSize, '0');
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit, hash >>= 4) *digit = kDigits[hash & 15];
  return text;
}

/// The JSON of a line; nullopt if it does not match its hash.
std::optional<std::string_view> checked(std::string_view line) {
  if (line.size() <= kHashSize || line[kHashSize] != ' ') return std::nullopt;
  const std::string_view json = line.substr(kHashSize + 1);
  if (line.substr(0, kHashSize) != hash_of(json)) return std::nullopt;
  return json;
}

[[noreturn]] void fail_to_write(const std::filesystem::path& path, int error) {
  throw Error("cannot write " + in_quotes(path.native()) + ": " + std::generic_category().message(error));
}

}  // namespace

PartialFile::PartialFile(const std::filesystem::path& path) : path_(path) {
  open();
  read_header();
}

PartialFile::~PartialFile() {
  if (descriptor_.is_open() && end_ == 0 && !header_) ::unlink(path_.c_str());
}

void PartialFile::open() {
  while (true) {
    descriptor_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
    if (!descriptor_.is_open()) fail_to_write(path_, errno);
    is_locked_ = ::flock(descriptor_.get(), LOCK_EX | LOCK_NB) == 0;
    if (!is_locked_ && errno == EWOULDBLOCK) {
      throw Error("another gemma-run is writing " + in_quotes(path_.native()) + "; let it finish, or stop it first");
    }
    // Whoever had the file until now may have removed it between the two calls.
    struct stat opened {};
    struct stat named {};
    if (::fstat(descriptor_.get(), &opened) != 0) fail_to_write(path_, errno);
    if (!S_ISREG(opened.st_mode))
      throw Error("cannot write " + in_quotes(path_.native()) + ": it is not a regular file");
    if (::stat(path_.c_str(), &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev) return;
  }
}

void PartialFile::read_header() {
  const InputFile file(path_);
  LineReader lines(file, kLongestLine);
  Line line;
  if (!lines.next(line)) return;
  const std::optional<std::string_view> json = checked(line.text);
  // The very first write may have been cut off; there is nothing to lose then.
  const std::string_view start = line.text.substr(0, kHashSize);
  if (!line.is_complete && start.find_first_not_of("0123456789abcdef") == std::string_view::npos) return;
  const Json document = json ? Json::parse(*json, nullptr, /*allow_exceptions=*/false) : Json();
  if (!document.is_object() || !document.contains(kMarker) || !document[kMarker].is_object()) {
    throw Error(in_quotes(path_.native()) + " is damaged, or gemma-run has not made it; remove it to start over");
  }
  header_ = document[kMarker];
  end_ = lines.bytes();
}

void PartialFile::begin(const Json& header) {
  if (::ftruncate(descriptor_.get(), 0) != 0) fail_to_write(path_, errno);
  end_ = 0;
  Json document;
  document[kMarker] = header;
  write_line(to_line(document));
  header_ = header;
  sync();
  // The name itself lives in the folder. Some file systems cannot do this.
  const FileDescriptor folder(
      ::open(path_.has_parent_path() ? path_.parent_path().c_str() : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.is_open()) ::fsync(folder.get());
}

PartialFile::Restored PartialFile::restore(const Shard& shard, std::uint64_t prompts) {
  shard_ = shard;
  missing_ = shard.size(prompts);
  offsets_.assign(static_cast<std::size_t>(missing_), 0);

  Restored restored;
  const InputFile file(path_);
  LineReader lines(file, kLongestLine);
  Line line;
  lines.next(line);
  while (lines.next(line) && line.is_complete) {
    end_ = lines.bytes();
    const std::optional<std::string_view> json = checked(line.text);
    const std::optional<std::uint64_t> index = json ? index_of(*json) : std::nullopt;
    if (!index || *index >= prompts || !shard.has(*index)) {
      ++restored.damaged;
      continue;
    }
    std::uint64_t& offset = offsets_[static_cast<std::size_t>(shard.place(*index))];
    if (offset != 0) continue;
    offset = line.offset;
    --missing_;
    ++restored.results;
    if (is_error_line(*json)) ++restored.failed;
  }
  if (::ftruncate(descriptor_.get(), static_cast<off_t>(end_)) != 0) fail_to_write(path_, errno);
  return restored;
}

void PartialFile::write_line(std::string_view json) {
  const std::string line = hash_of(json).append(" ").append(json).append("\n");
  std::size_t written = 0;
  while (written < line.size()) {
    const ssize_t count =
        ::pwrite(descriptor_.get(), line.data() + written, line.size() - written, static_cast<off_t>(end_ + written));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      // If this fails, too, the next run finds the cut line by its hash.
      if (::ftruncate(descriptor_.get(), static_cast<off_t>(end_)) != 0) fail_to_write(path_, error);
      fail_to_write(path_, error);
    }
    written += static_cast<std::size_t>(count);
  }
  end_ += line.size();
  has_unsynced_ = true;
}

void PartialFile::append(std::uint64_t index, std::string_view json) {
  std::uint64_t& offset = offsets_[static_cast<std::size_t>(shard_.place(index))];
  const std::uint64_t start = end_;
  write_line(json);
  offset = start;
  --missing_;
  sync_if_due();
}

void PartialFile::sync_if_due() {
  if (has_unsynced_ && std::chrono::steady_clock::now() - last_sync_ >= kSyncInterval) sync();
}

void PartialFile::sync() {
  if (::fdatasync(descriptor_.get()) != 0) fail_to_write(path_, errno);
  has_unsynced_ = false;
  last_sync_ = std::chrono::steady_clock::now();
}

bool PartialFile::copy_in_order(const std::function<bool(std::string_view)>& write) const {
  constexpr std::size_t kBlock = std::size_t{4} << 10;
  const InputFile file(path_);
  std::string line;
  for (std::size_t place = 0; place < offsets_.size(); ++place) {
    const std::uint64_t offset = offsets_[place];
    line.clear();
    std::size_t line_break = std::string::npos;
    while (line_break == std::string::npos && offset + line.size() < file.size()) {
      const std::size_t had = line.size();
      line.resize(had +
                  static_cast<std::size_t>(std::min<std::uint64_t>(std::max(kBlock, had), file.size() - offset - had)));
      file.read(offset + had, std::as_writable_bytes(std::span(line).subspan(had)));
      line_break = line.find('\n', had);
    }
    const std::optional<std::string_view> json =
        line_break == std::string::npos ? std::nullopt : checked(std::string_view(line).substr(0, line_break));
    if (!json || index_of(*json) != shard_.index(place)) {
      throw Error("a result in " + in_quotes(path_.native()) + " has been damaged since it was written");
    }
    if (!write(std::string_view(line).substr(kHashSize + 1, line_break - kHashSize))) return false;
  }
  return true;
}

void PartialFile::remove() {
  if (::unlink(path_.c_str()) != 0) fail_to_write(path_, errno);
  descriptor_ = FileDescriptor();
}

}  // namespace gemma::cli
