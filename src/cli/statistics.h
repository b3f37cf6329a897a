#pragma once

#include <cstdint>
#include <string>

#include "gemma/engine.h"

namespace gemma::cli {

std::string count_of(std::uint64_t count, const std::string& noun);  ///< "1 token", "5 tokens"
std::string grouped(std::uint64_t number);                           ///< "13,117,760"
std::string with_unit(std::uint64_t bytes);                          ///< "26.2 MB"
std::string in_tokens(int tokens, double seconds);                   ///< "5 tokens in 0.012 s (430 tokens/s)"

/// A line of --stats on standard error: a name, and what there is to say.
void print_statistic(const std::string& name, const std::string& text);

/// The lines about the model, the device and the memory they take.
/// @param load_s  0: not known
void print_engine(const EngineInfo& info, double load_s);

}  // namespace gemma::cli
