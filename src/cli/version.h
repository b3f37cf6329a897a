#pragma once

#include <string>

namespace gemma::cli {

/// What --version prints: the version, the devices that are built in, and their architectures.
std::string version_text();

}  // namespace gemma::cli
