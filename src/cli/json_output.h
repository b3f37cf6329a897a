#pragma once

#include <nlohmann/json.hpp>

namespace gemma::cli {

/// A document whose members keep the order in which they are put in.
using Json = nlohmann::ordered_json;

/// Writes a document and a line break to standard output; bytes that are not valid UTF-8 become U+FFFD.
void print_json(const Json& document);

}  // namespace gemma::cli
