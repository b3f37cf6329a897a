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
void add_device_options(CLI::App& app, CommonOptions& options);  ///< --device, --threads
void add_cache_options(CLI::App& app, CommonOptions& options);   ///< --context, --window, --kv-type
void add_output_options(CLI::App& app, CommonOptions& options);  ///< --json, --quiet

/// All that a command which runs the model takes: these, and --chunk and --stats.
void add_engine_options(CLI::App& app, CommonOptions& options);

/// What --model leaves open: $GEMMA_MODEL, else the built-in demo model, which is said on standard error.
void choose_model(CommonOptions& options);

/// Says on standard error, however quiet it is to be, that what a model computed was no number.
void warn_of_damage(const EngineInfo& info);

/// Says on standard error that the CPU is used though there is a GPU.
void note_device(const EngineInfo& info, const CommonOptions& options);

}  // namespace gemma::cli
