#pragma once

#include "gemma/engine.h"

namespace CLI {
class App;
}

namespace gemma::cli {

/// How answers are sampled, how long they are, and how a prompt is understood.
void add_generation_options(CLI::App& app, GenerationOptions& options);

}  // namespace gemma::cli
