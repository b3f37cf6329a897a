#pragma once

#include <cstddef>
#include <span>
#include <thread>

namespace gemma {

/// While it lives, a thread has the system bring the first pages of a mapped file into memory, which would otherwise
/// wait until somebody touches them.
class ReadAhead {
 public:
  /// So many bytes at most, lest pages go again before they are used: more than a fast disk gives in the time for which
  /// this is worth while.
  static constexpr std::size_t kMostBytes = std::size_t{2} << 30;

  /// @param file  all of a MappedFile, which must live as long as this; empty: there is nothing to read
  explicit ReadAhead(std::span<const std::byte> file);
  /// Lets go after what is being read just now, 8 MiB at most.
  ~ReadAhead() = default;

  /// Waits until everything is asked for.
  void finish() { thread_.join(); }

 private:
  std::jthread thread_;
};

}  // namespace gemma
