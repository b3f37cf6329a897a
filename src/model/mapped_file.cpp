#include "model/mapped_file.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

#include "gemma/error.h"
#include "model/input_file.h"
#include "model/quote.h"

namespace gemma {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const InputFile file(path);
  if (file.size() == 0) throw Error("cannot open " + in_quotes(file.name()) + ": it is empty");
  void* address = ::mmap(nullptr, file.size(), PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (address == MAP_FAILED) {
    throw Error("cannot map " + in_quotes(file.name()) + " into memory: " + std::generic_category().message(errno));
  }
  bytes_ = {static_cast<const std::byte*>(address), static_cast<std::size_t>(file.size())};
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

}  // namespace gemma
