#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace gemma::cli {

/// A document whose members keep the order in which they are put in.
using Json = nlohmann::ordered_json;

/// The document on one line; bytes that are not valid UTF-8 become U+FFFD.
std::string to_line(const Json& document);

/// Writes a document and a line break to standard output; bytes that are not valid UTF-8 become U+FFFD.
void print_json(const Json& document);

}  // namespace gemma::cli
