#pragma once

#include "cli/json_output.h"
#include "gemma/engine.h"

namespace gemma::cli {

const char* name_of(FinishReason reason);  ///< "stop", "length" or "interrupt"

/// The members that `prompt --json` documents.
Json to_json(const Result& result, const Tokenizer& tokenizer);

/// The lines of --stats about an answer, the model, the device and the memory they take.
void print_statistics(const Result& result, const EngineInfo& info);

}  // namespace gemma::cli
