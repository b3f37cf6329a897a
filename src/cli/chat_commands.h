#pragma once

#include <string>

#include "cli/dialogue.h"

namespace gemma::cli {

/// How a chat goes on after a message or a command.
enum class Reaction {
  kGoOn,
  kInterrupted,  ///< Ctrl-C stopped the answer
  kLeave,
};

/// Does what "/NAME ARGUMENT" asks for.
/// @throws gemma::Error if there is no such command, or it cannot be done.
Reaction obey(Dialogue& dialogue, const std::string& name, const std::string& argument);

}  // namespace gemma::cli
