#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/json_output.h"
#include "cli/statistics.h"
#include "cli/terminal.h"
#include "device/cuda_support.h"
#include "device/device.h"
#include "gemma/error.h"
#include "model/metadata.h"
#include "model/model_file.h"
#include "runtime/kv_cache.h"

namespace gemma::cli {
namespace {

struct InspectOptions {
  CommonOptions common;
  bool verify = false;
};

struct Inspection {
  Model model;
  std::size_t tensors = 0;
  int context = 0;
  int window = 0;
  KvType kv_type = KvType::kF32;
  KvBytes cache;
};

/// What the cache is kept in on the device that would be used. A GPU that is named need not be there: what a model will
/// need of one can be asked anywhere.
KvType kv_type(const EngineOptions& options, const Model& model) {
  if (options.cache == CacheType::kF32) return KvType::kF32;
  if (options.cache == CacheType::kBf16) return KvType::kBf16;
  if (options.cache == CacheType::kQ8) return KvType::kQ8;
  if (options.device == "cpu") return KvType::kF32;
  if (options.device != "auto") return KvType::kBf16;
  return why_not_on_cuda(model, KvType::kBf16).empty() && has_cuda_device() ? KvType::kBf16 : KvType::kF32;
}

Inspection inspect(const EngineOptions& options) {
  Inspection seen;
  seen.model = options.model.empty() ? load_demo_model() : load_model(options.model);
  const Config& config = seen.model.config;
  if (options.window > config.window) {
    throw Error("the window can only be narrowed: this model's is " + std::to_string(config.window) + ", not " +
                std::to_string(options.window));
  }
  seen.tensors = model_file_tensors(config, seen.model.weights.types(), seen.model.tokenizer.size()).size();
  seen.context = options.context != 0 ? options.context : config.context;
  seen.window = options.window != 0 ? options.window : config.window;
  seen.kv_type = kv_type(options, seen.model);
  seen.cache = kv_bytes(config, seen.window, seen.context, seen.kv_type);
  return seen;
}

const char* name_of(LayerKind kind) { return kind == LayerKind::kLocal ? "local" : "global"; }
const char* name_of(KvType type) { return type == KvType::kF32 ? "f32" : type == KvType::kBf16 ? "bf16" : "q8"; }

Json to_json(const Inspection& seen) {
  Json layers = Json::array();
  for (const LayerKind kind : seen.model.config.layers) layers.push_back({{"kind", name_of(kind)}});
  return {
      {"config", Json(config_to_json(seen.model.config))},
      {"layers", layers},
      {"tensors", seen.tensors},
      {"weights_bytes", seen.model.weights.bytes()},
      {"kv_cache",
       {{"context", seen.context},
        {"local_bytes", seen.cache.local},
        {"global_bytes", seen.cache.global},
        {"total_bytes", seen.cache.total()},
        {"without_window_bytes", seen.cache.without_window}}},
  };
}

std::string text_of(WeightTypes types) {
  std::string text(name_of(types.layers));
  if (types.embed != types.layers) text.append(", the embedding in ").append(name_of(types.embed));
  return text;
}

std::string order_of(const std::vector<LayerKind>& layers) {
  if (layers == alternating_layers(static_cast<int>(layers.size()))) return "local, global, local, ...";
  std::string order;
  for (const LayerKind kind : layers) order += kind == LayerKind::kLocal ? 'L' : 'G';
  return order;
}

void print_table(const Inspection& seen) {
  const Config& config = seen.model.config;
  std::string out;
  const auto row = [&out](std::string name, const std::string& text) {
    name.resize(14, ' ');
    out += name + text + "\n";
  };
  const auto number = [](auto value) { return std::to_string(value); };
  row("model", seen.model.name);
  if (!config.name.empty()) row("name", config.name);
  row("made for", seen.model.defaults.is_chat ? "chat (instruction-tuned)" : "completing text (base model)");
  row("layers", number(config.layer_count()) + ": " + number(config.local_layer_count()) + " local, " +
                    number(config.global_layer_count()) + " global (" + order_of(config.layers) + ")");
  row("window", number(seen.window) + " positions in local layers" +
                    (seen.window == config.window ? "" : ", narrowed from " + number(config.window)));
  row("context", number(config.context) + " positions");
  row("hidden size", number(config.hidden_size) + ", feed-forward " + number(config.intermediate_size));
  row("heads", number(config.heads) + " of size " + number(config.head_dim) + ", " + number(config.kv_heads) +
                   " for keys and values");
  row("vocabulary", number(config.vocab_size) + " tokens");
  const auto embedding = static_cast<std::uint64_t>(config.embedding_parameters());
  row("parameters", grouped(embedding + static_cast<std::uint64_t>(config.other_parameters())) + ", " +
                        grouped(embedding) + " of them in the embedding");
  row("weights", with_unit(seen.model.weights.bytes()) + " in " + text_of(seen.model.weights.types()) + "; " +
                     number(seen.tensors) + " tensors in the file");
  out += "\n";
  row("KV cache", "for " + number(seen.context) + " positions in " + name_of(seen.kv_type));
  row("  local", with_unit(seen.cache.local) + " in rings");
  row("  global", with_unit(seen.cache.global) + " in pages");
  row("  total",
      with_unit(seen.cache.total()) + "; without the rings it would be " + with_unit(seen.cache.without_window));
  print(out);
}

void verify(const CommonOptions& options) {
  if (options.engine.model.empty()) {
    throw UsageError("--verify needs a model file (-m FILE): the demo model is part of the program");
  }
  Verification found;
  {
    ProgressBar progress("Verifying", !options.quiet);
    found = verify_model_file(options.engine.model,
                              [&progress](std::uint64_t done, std::uint64_t total) { progress.update(done, total); });
  }
  if (!found.damaged_tensors.empty()) {
    std::string names = found.damaged_tensors.front();
    if (found.damaged_tensors.size() > 1) names += " and " + std::to_string(found.damaged_tensors.size() - 1) + " more";
    throw Error("'" + options.engine.model.string() + "' is damaged in " + names +
                "; copy it again, or convert it again with gemma-convert");
  }
  if (!options.quiet) print_note("Verified " + with_unit(found.bytes) + ": all as it was written.");
}

int run(InspectOptions& options) {
  choose_model(options.common);
  if (options.verify) verify(options.common);
  const Inspection seen = inspect(options.common.engine);
  if (options.common.json) {
    print_json(to_json(seen));
  } else {
    print_table(seen);
  }
  return kExitDone;
}

}  // namespace

Command add_inspect_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("inspect", "What a model file holds and what it will need");
  const auto options = std::make_shared<InspectOptions>();
  app->add_flag("--verify", options->verify, "Check every byte of the file [off]");
  add_model_option(*app, options->common);
  add_device_options(*app, options->common);
  add_cache_options(*app, options->common);
  add_output_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
