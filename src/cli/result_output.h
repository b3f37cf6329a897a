#pragma once

#include <vector>

#include "cli/json_output.h"
#include "gemma/engine.h"

namespace gemma::cli {

const char* name_of(FinishReason reason);  ///< "stop", "length" or "interrupt"

/// A list with an entry for each step: its token, and the likeliest ones under "top".
Json to_json(const std::vector<StepLogprobs>& steps, const Tokenizer& tokenizer);

/// The members that `prompt --json` documents.
Json to_json(const Result& result, const Tokenizer& tokenizer);

/// The lines of --stats about the size and speed of a prompt and its answer.
void print_speed(const Result& result);

/// The same, and those about the model, the device and the memory they take.
void print_statistics(const Result& result, const EngineInfo& info);

}  // namespace gemma::cli
