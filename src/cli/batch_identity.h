#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "cli/batch_input.h"
#include "cli/json_output.h"
#include "cli/shard.h"
#include "gemma/engine.h"

namespace gemma::cli {

/// What the results of a batch depend on.
struct BatchIdentity {
  const EngineInfo& engine;
  const EngineOptions& engine_options;
  const GenerationOptions& options;  ///< of lines that have none of their own
  InputFormat format;
  const InputSurvey& input;
  Shard shard;
};

/// The same as a flat JSON object, the first line of OUTPUT.partial. "seed" is the run's; null as long as there is
/// none.
Json to_json(const BatchIdentity& identity);

/// In words what one run depends on and another does not: "--top-k was 5 and is 7"; empty if the results are the same.
/// A seed that is null now fits any.
/// @param except  members that do not count
std::string differences(const Json& then, const Json& now, std::initializer_list<std::string_view> except = {});

/// A seed for a run that was given none, the same for all its shards, which draw it without knowing of each other.
std::uint64_t shared_seed(Json identity);

}  // namespace gemma::cli
