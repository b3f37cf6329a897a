#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace gemma {

/// Length of a hash written as text.
inline constexpr std::size_t kHashDigits = 32;

/// XXH3 with 128 bits, of bytes that come in pieces. Finds damage; not meant to withstand forgery.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void update(std::span<const std::byte> bytes);

  /// Of all bytes so far: 32 lower-case hexadecimal digits.
  std::string digits() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// XXH3 with 64 bits.
std::uint64_t hash64(std::span<const std::byte> bytes);

}  // namespace gemma
