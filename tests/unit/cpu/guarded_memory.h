#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace gemma {

/// Zeroed memory that ends where readable memory ends: reading beyond it is a crash.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t readable = (bytes + page - 1) / page * page;
    bytes_ = readable + page;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    if (mprotect(static_cast<char*>(memory_) + readable, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = static_cast<char*>(memory_) + readable - bytes;
  }
  ~GuardedMemory() { munmap(memory_, bytes_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::size_t bytes_ = 0;
  void* memory_ = nullptr;
  char* data_ = nullptr;
};

}  // namespace gemma
