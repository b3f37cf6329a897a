#pragma once

#include "gemma/engine.h"

namespace CLI {
class App;
}

namespace gemma::cli {

/// Options that several commands share.
struct CommonOptions {
  EngineOptions engine;
  bool json = false;
  bool quiet = false;
  bool stats = false;
};

void add_model_option(CLI::App& app, CommonOptions& options);    ///< --model
void add_device_options(CLI::App& app, CommonOptions& options);  ///< --device, --threads, --chunk
void add_cache_options(CLI::App& app, CommonOptions& options);   ///< --context, --window, --kv-type
void add_output_options(CLI::App& app, CommonOptions& options);  ///< --json, --quiet
void add_stats_option(CLI::App& app, CommonOptions& options);    ///< --stats

/// What --model leaves open: $GEMMA_MODEL, else the built-in demo model, which is said on standard error.
void choose_model(CommonOptions& options);

}  // namespace gemma::cli
