#pragma once

#include <string>

namespace gemma::cli {

std::string program_version();  ///< "0.1.0"

/// What --version prints: the version, the devices that are built in, and their architectures.
std::string version_text();

}  // namespace gemma::cli
