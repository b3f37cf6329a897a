#pragma once

#include <string>

#include "gemma/error.h"

namespace gemma {

/// The message of the Error that an action throws; empty if it throws none. Any other exception goes through.
template <typename Action>
std::string error_text(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace gemma
