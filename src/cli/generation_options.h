#pragma once

#include "gemma/engine.h"

namespace CLI {
class App;
}

namespace gemma::cli {

/// How answers are sampled, and how long they are.
void add_generation_options(CLI::App& app, GenerationOptions& options);

/// Whether a prompt is a chat turn: --chat, --raw.
void add_template_options(CLI::App& app, GenerationOptions& options);

}  // namespace gemma::cli
