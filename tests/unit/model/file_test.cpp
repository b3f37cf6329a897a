#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "model/atomic_file.h"
#include "model/hash.h"
#include "model/input_file.h"
#include "model/mapped_file.h"
#include "model/read_ahead.h"
#include "support/error_text.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

using testing::HasSubstr;

std::span<const std::byte> bytes_in(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string contents(const std::filesystem::path& path) { return read_small_file(path, 1 << 20); }

TEST(MappedFile, ShowsTheBytesOfTheFile) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "file") << "four";
  const MappedFile file(directory / "file");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()), "four");
}

TEST(ReadAhead, BringsAFileIntoMemoryThatNobodyHasTouched) {
  const TemporaryDirectory directory;
  constexpr std::size_t kBytes = (std::size_t{20} << 20) + 5;
  std::ofstream(directory / "file") << std::string(kBytes, 'x');
  // The system may keep the pages all the same: then there is nothing to see.
  const FileDescriptor descriptor(::open((directory / "file").c_str(), O_RDONLY));
  ::fsync(descriptor.get());
  ::posix_fadvise(descriptor.get(), 0, 0, POSIX_FADV_DONTNEED);
  const MappedFile file(directory / "file");
  ReadAhead(file.bytes()).finish();
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> is_there((kBytes + page - 1) / page);
  // What was asked for takes a while to come.
  for (int patience = 500; patience > 0; --patience) {
    ASSERT_EQ(::mincore(const_cast<std::byte*>(file.bytes().data()), kBytes, is_there.data()), 0);
    if (std::all_of(is_there.begin(), is_there.end(), [](unsigned char of_page) { return (of_page & 1) != 0; })) return;
    ::usleep(10'000);
  }
  FAIL() << "pages are missing";
}

TEST(ReadAhead, LetsGoWhenItIsNotWanted) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "file") << "four";
  const MappedFile file(directory / "file");
  for (int i = 0; i < 100; ++i) ReadAhead{file.bytes()};
  ReadAhead{{}};
}

TEST(MappedFile, RefusesWhatIsNotAFileWithContents) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "empty").flush();
  ASSERT_EQ(::mkfifo((directory / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_text([&] { MappedFile(directory / "missing"); }), HasSubstr("No such file"));
  EXPECT_THAT(error_text([&] { MappedFile{directory.path()}; }), HasSubstr("it is a directory"));
  EXPECT_THAT(error_text([&] { MappedFile(directory / "empty"); }), HasSubstr("it is empty"));
  EXPECT_THAT(error_text([&] { MappedFile(directory / "pipe"); }), HasSubstr("not a regular file"));
}

TEST(InputFile, ReadsAtAnyOffsetAndNoticesTheEnd) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "file") << "abcdef";
  const InputFile file(directory / "file");
  std::string text(3, ' ');
  file.read(2, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "cde");
  EXPECT_THAT(error_text([&] { file.read(4, std::as_writable_bytes(std::span(text))); }), HasSubstr("shorter"));
  EXPECT_TRUE(file.starts_with("abc"));
  EXPECT_FALSE(file.starts_with("abcdefg"));
  EXPECT_THAT(error_text([&] { read_small_file(directory / "file", 5); }), HasSubstr("at most 5"));
}

TEST(InputFile, NamesAFileWithoutItsControlCharacters) {
  EXPECT_THAT(error_text([] { InputFile("no\x1b[31m\nsuch"); }), HasSubstr("'no?[31m?such'"));
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "file";
  {
    AtomicFile file(path);
    file.write(0, bytes_in("left behind"));
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  {
    AtomicFile file(path);
    file.write(3, bytes_in("def"));
    file.write(0, bytes_in("abc"));
    file.commit();
  }
  EXPECT_EQ(contents(path), "abcdef");
}

TEST(AtomicFile, LeavesTheOldFileUntilTheNewOneIsComplete) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "file";
  std::ofstream(path) << "old";
  {
    AtomicFile file(path);
    file.write(0, bytes_in("new"));
    EXPECT_EQ(contents(path), "old");
    file.commit();
  }
  EXPECT_EQ(contents(path), "new");
}

TEST(AtomicFile, WritesTheFileThatALinkNames) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "target") << "old";
  std::filesystem::create_symlink("target", directory / "link");
  AtomicFile file(directory / "link");
  file.write(0, bytes_in("new"));
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(directory / "link"));
  EXPECT_EQ(contents(directory / "target"), "new");
}

TEST(AtomicFile, RefusesWhatIsNotTheNameOfAFile) {
  const TemporaryDirectory directory;
  EXPECT_THAT(error_text([&] { AtomicFile{directory.path()}; }), HasSubstr("it is a directory"));
  EXPECT_THAT(error_text([] { AtomicFile("/dev/null"); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_text([] { AtomicFile("no/such/folder/file"); }), HasSubstr("No such file or directory"));
  EXPECT_THAT(error_text([] { AtomicFile(""); }), HasSubstr("does not name a file"));
}

TEST(Hasher, GivesThePublishedValuesHoweverTheBytesArrive) {
  Hasher none;
  EXPECT_EQ(none.digits(), "99aa06d3014798d86001c324468d497f");  // XXH3-128 of no bytes, from the xxHash specification
  const std::string text(1000, 'x');
  Hasher whole;
  whole.update(bytes_in(text));
  Hasher pieces;
  for (std::size_t i = 0; i < text.size(); i += 7) pieces.update(bytes_in(std::string_view(text).substr(i, 7)));
  EXPECT_EQ(pieces.digits(), whole.digits());
  EXPECT_NE(whole.digits(), none.digits());
}

}  // namespace
}  // namespace gemma
