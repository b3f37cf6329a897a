#include "model/read_ahead.h"

#include <sys/mman.h>

#include <algorithm>

namespace gemma {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{8} << 20;  // a multiple of any page's size

}  // namespace

ReadAhead::ReadAhead(std::span<const std::byte> file)
    : thread_([bytes = file.first(std::min(file.size(), kMostBytes))](const std::stop_token& stop) {
        for (std::size_t offset = 0; offset < bytes.size() && !stop.stop_requested(); offset += kBlockBytes) {
          const std::span<const std::byte> block =
              bytes.subspan(offset).first(std::min(kBlockBytes, bytes.size() - offset));
          // Advice: where it is not taken, the pages are read when they are touched.
          ::madvise(const_cast<std::byte*>(block.data()), block.size(), MADV_WILLNEED);
        }
      }) {}

}  // namespace gemma
