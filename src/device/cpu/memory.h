#pragma once

#include <cstddef>
#include <cstdint>

namespace gemma {

/// Zeroed memory whose pages are taken from the system when they are first touched: what is never used costs nothing.
class Memory {
 public:
  Memory() = default;

  /// @throws Error if the system refuses. @param what  names the memory in the message.
  Memory(std::size_t bytes, const char* what);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Zeroed floats that start at a page's boundary, rows one after the other.
class FloatRows {
 public:
  FloatRows() = default;
  FloatRows(int rows, int columns, const char* what)
      : memory_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * sizeof(float), what),
        columns_(columns) {}

  int columns() const { return columns_; }  ///< floats from one row to the next
  float* data() const { return reinterpret_cast<float*>(memory_.data()); }
  float* row(int index) const { return data() + static_cast<std::size_t>(index) * static_cast<std::size_t>(columns_); }

 private:
  Memory memory_;
  int columns_ = 0;
};

/// What the system can give without swapping; the largest number if it does not tell.
std::uint64_t available_memory();

}  // namespace gemma
