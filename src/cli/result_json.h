#pragma once

#include <vector>

#include "cli/json_output.h"
#include "gemma/engine.h"

namespace gemma::cli {

/// "stop", "length" or "interrupt".
const char* name_of(FinishReason reason);

/// A list with an entry for each step: its token, and the likeliest ones under "top".
Json to_json(const std::vector<StepLogprobs>& steps, const Tokenizer& tokenizer);

}  // namespace gemma::cli
