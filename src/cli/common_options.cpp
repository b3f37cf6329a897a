#include "cli/common_options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "cli/numbers.h"
#include "cli/terminal.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr const char* kModelGroup = "Model";
constexpr const char* kOutputGroup = "Output";

std::string check_device(const std::string& name) {
  constexpr std::string_view kCuda = "cuda:";
  int number = 0;
  if (name == "auto" || name == "cpu" || name == "cuda") return {};
  const bool is_cuda = name.starts_with(kCuda) && parse_number(std::string_view(name).substr(kCuda.size()), number);
  if (is_cuda && number >= 0) return {};
  return "'" + name + "' is not a device; choose auto, cpu, cuda or cuda:N";
}

std::string check_cache_type(const std::string& name) {
  if (name == "auto" || name == "f32" || name == "bf16" || name == "q8") return {};
  return "'" + name + "' is not a type for the cache; choose auto, f32, bf16 or q8";
}

CacheType cache_type(const std::string& name) {
  if (name == "f32") return CacheType::kF32;
  if (name == "bf16") return CacheType::kBf16;
  if (name == "q8") return CacheType::kQ8;
  return CacheType::kAuto;
}

}  // namespace

void add_model_option(CLI::App& app, CommonOptions& options) {
  app.add_option("-m,--model", options.engine.model, "Model file [$GEMMA_MODEL, else the built-in demo]")
      ->type_name("FILE")
      ->check([](const std::string& path) { return path.empty() ? "the file name is empty" : std::string(); })
      ->group(kModelGroup);
}

void add_device_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--device", options.engine.device, "auto, cpu, cuda or cuda:N [auto]")
      ->type_name("NAME")
      ->check(check_device)
      ->group(kModelGroup);
  app.add_option("--threads", options.engine.threads, "CPU threads [one for each core]")
      ->type_name("N")
      ->check(whole_number(1, 1024))
      ->group(kModelGroup);
}

void add_cache_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--context", options.engine.context, "Positions of prompt and answer [the model's]")
      ->type_name("N")
      ->check(whole_number(1, 1 << 24))
      ->group(kModelGroup);
  app.add_option("--window", options.engine.window, "Narrow the sliding window [the model's]")
      ->type_name("N")
      ->check(whole_number(1))
      ->group(kModelGroup);
  app.add_option_function<std::string>(
         "--kv-type", [&options](const std::string& name) { options.engine.cache = cache_type(name); },
         "Cache in f32, bf16 or q8 [f32; bf16 on a GPU]")
      ->type_name("TYPE")
      ->check(check_cache_type)
      ->group(kModelGroup);
}

void add_output_options(CLI::App& app, CommonOptions& options) {
  app.add_flag("--json", options.json, "One JSON document instead of text [off]")->group(kOutputGroup);
  app.add_flag("--quiet", options.quiet, "No notes on standard error [off]")->group(kOutputGroup);
}

void add_engine_options(CLI::App& app, CommonOptions& options) {
  add_model_option(app, options);
  add_device_options(app, options);
  app.add_option("--chunk", options.engine.chunk, "Rows of a prompt read at once [512; 4096 on a GPU]")
      ->type_name("N")
      ->check(whole_number(1, 1 << 16))
      ->group(kModelGroup);
  add_cache_options(app, options);
  add_output_options(app, options);
  app.add_flag("--stats", options.stats, "Speed and memory on standard error [off]")->group(kOutputGroup);
}

void choose_model(CommonOptions& options) {
  if (!options.engine.model.empty()) return;
  if (const char* path = std::getenv("GEMMA_MODEL"); path != nullptr && *path != '\0') {
    options.engine.model = path;
  } else if (!options.quiet) {
    print_note("Using the built-in demo model, a tiny teller of children's stories; -m FILE names another.");
  }
}

void warn_of_damage(const EngineInfo& info) {
  print_note(
      "Warning: what the model computes is not a number, so its weights must be damaged; see gemma-run inspect "
      "--verify -m " +
      in_quotes(info.model));
}

void note_device(const EngineInfo& info, const CommonOptions& options) {
  if (options.quiet || info.why_not_cuda.empty()) return;
  print_note("Using the CPU, since the GPU cannot run this model: " + info.why_not_cuda + ".");
}

}  // namespace gemma::cli
