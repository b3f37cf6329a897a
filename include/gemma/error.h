#pragma once

#include <stdexcept>
#include <string>

namespace gemma {

/// The one exception type that leaves the library. Its text is meant for the user: it says what happened, where, and
/// what to do next, in one or two lines without a trailing newline.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

/// What was asked for does not fit into memory; asking for less may help.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

}  // namespace gemma
