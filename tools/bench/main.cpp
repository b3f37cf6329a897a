// gemma-bench: measures how fast models read prompts and make tokens, each beside the limit of the machine.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/cpu_limits.h"
#include "bench/measure.h"
#include "bench/plot.h"
#include "bench/report.h"
#include "cli/numbers.h"
#include "device/attention_mask.h"
#include "gemma/error.h"
#include "model/atomic_file.h"
#include "model/check_scales.h"
#include "model/model_file.h"
#include "model/model_writer.h"
#include "usage.h"

namespace gemma {
namespace {

struct Options {
  std::string model;
  std::vector<std::string> shapes;
  std::vector<std::string> types = {"bf16"};
  std::string device = "auto";
  std::optional<KvType> kv_type;
  double bandwidth = 0;
  int threads = 0;
  std::vector<int> contexts = {512};
  std::vector<int> rows = {1};
  std::vector<int> prompts = {512};
  std::vector<int> attention;
  int tokens = 16;
  int chunk = 0;  // 0: as the engine does
  int repeats = 3;
  bool wants_profile = false;
  bool is_json = false;
  std::string plot;
  std::string save;
};

/// Random weights. Those for a GPU, which copies them, are one layer again and again: no wait for tens of GB.
Model make_weights(const std::string& shape, const std::string& type, bool is_gpu) {
  const WeightType layers = parse_weight_type(type);
  // As gemma-convert makes it: the embedding, which is also the head, is at least q8.
  const WeightTypes types{.layers = layers, .embed = layers == WeightType::kBf16 ? WeightType::kBf16 : WeightType::kQ8};
  Config config = config_of_shape(shape);
  if (!is_gpu) return random_model(config, 1, /*cheap=*/true, types);
  Config one_layer = config;
  one_layer.layers.resize(1);
  Model model = random_model(one_layer, 1, /*cheap=*/true, types);
  model.weights.layers.assign(config.layers.size(), model.weights.layers.front());
  model.config = std::move(config);
  return model;
}

std::optional<KvType> parse_kv_type(const std::string& name) {
  if (name == "auto") return std::nullopt;
  return name == "f32" ? KvType::kF32 : name == "bf16" ? KvType::kBf16 : KvType::kQ8;
}

const char* kv_type_name(KvType type) { return type == KvType::kF32 ? "f32" : type == KvType::kBf16 ? "bf16" : "q8"; }

/// N of "cuda:N", 0 of "cuda"; nothing if the name is neither.
std::optional<int> gpu_of(const std::string& name) {
  constexpr std::string_view kCuda = "cuda:";
  int number = 0;
  if (name == "cuda") return 0;
  const bool has_number =
      name.starts_with(kCuda) && cli::parse_number(std::string_view(name).substr(kCuda.size()), number);
  return has_number && number >= 0 ? std::optional(number) : std::nullopt;
}

std::string check_device(const std::string& name) {
  if (name == "auto" || name == "cpu" || gpu_of(name)) return {};
  return "'" + name + "' is not a device; choose auto, cpu, cuda or cuda:N";
}

DeviceLimits measure_limits(const Options& options, const BenchDevice& bench) {
  DeviceLimits limits = bench.is_gpu ? measure_cuda_limits(bench.gpu)
                                     : DeviceLimits{.read_bytes_per_s = measure_read_bandwidth(options.threads),
                                                    .multiply_flop_per_s = measure_multiply_rate(options.threads)};
  if (options.bandwidth > 0) limits.read_bytes_per_s = options.bandwidth * 1e9;
  return limits;
}

int longest_of(const std::vector<int>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

/// Positions behind a context that decoding takes.
int decoded_positions(const Options& options) { return options.tokens + 4; }

/// Refuses to decode more than the model's context holds.
void check_tokens(const Options& options, const Config& config) {
  const int room = config.context - decoded_positions(options);
  if (room > 0 || longest_of(options.contexts) == 0) return;
  throw Error("--tokens " + std::to_string(options.tokens) + " is too much for the model's context of " +
              std::to_string(config.context) + ", which must also hold a --context before them; at most " +
              std::to_string(options.tokens + room - 1) + " fit");
}

/// Contexts and prompts that the model has not been made for are cut, and that is said, so that the defaults suit small
/// models, too.
/// @param option  that the values come from
/// @param reason  what `most` is
std::vector<int> cut_to(std::vector<int> values, int most, const char* option, const std::string& reason) {
  std::erase(values, 0);
  for (int& value : values) {
    if (value <= most) continue;
    std::fprintf(stderr, "gemma-bench: %s %d is cut to %d, %s\n", option, value, most, reason.c_str());
    value = most;
  }
  return values;
}

/// Decoding of `rows` sequences at each context.
void bench_decode(const Options& options, const BenchDevice& bench, const Model& model, Device& device,
                  const std::vector<int>& contexts, int rows, ModelResult& result) {
  for (const int context : contexts) {
    const Timings step = measure_decode(model, device, context, rows, std::min(chunk_of(bench), context),
                                        options.tokens, &result.host_share);
    result.decode.push_back({.context = context,
                             .rows = rows,
                             .step = step,
                             .cost = decode_cost(model, model.config.window, context, rows, kv_type_of(bench))});
  }
}

ModelResult bench_model(const Options& options, const BenchDevice& bench, const Model& model, const std::string& type) {
  const int context = model.config.context;
  const std::vector<int> contexts =
      cut_to(options.contexts, context - decoded_positions(options), "--context",
             "what the model's context of " + std::to_string(context) + " leaves beside --tokens");
  const std::vector<int> prompts = cut_to(options.prompts, context, "--prompt", "the model's context");
  ModelResult result{.name = model.name, .type = type, .weights_bytes = static_cast<double>(model.weights.bytes())};

  // One sequence at every context, and the prompts.
  {
    const int decoded = contexts.empty() ? 0 : longest_of(contexts) + decoded_positions(options);
    const int longest = std::max({decoded, longest_of(prompts), 1});
    const std::unique_ptr<Device> device = make_device(bench, model, longest, 1);
    for (const int tokens : prompts) {
      const int chunk = std::min(chunk_of(bench), tokens);
      result.prompt.push_back({.tokens = tokens,
                               .chunk = chunk,
                               .whole = measure_prompt(model, *device, tokens, chunk, options.repeats),
                               .cost = prompt_cost(model, model.config.window, tokens, chunk)});
    }
    if (std::find(options.rows.begin(), options.rows.end(), 1) != options.rows.end())
      bench_decode(options, bench, model, *device, contexts, 1, result);
    if (options.wants_profile && !contexts.empty()) {
      const int first = contexts.front();
      Profile& profile = result.decode_profile;
      profile.parts = profile_decode(model, *device, first, std::min(chunk_of(bench), first), options.tokens);
      for (const PhaseTime& part : profile.parts)
        profile.bytes.push_back(bytes_of_part(model, part.name, model.config.window, first, 1, kv_type_of(bench)));
    }
    if (options.wants_profile && !prompts.empty())
      result.prompt_profile.parts =
          profile_prompt(model, *device, prompts.front(), std::min(chunk_of(bench), prompts.front()));
  }
  // More sequences, at the first context.
  for (const int rows : options.rows) {
    if (rows == 1 || contexts.empty()) continue;
    const std::unique_ptr<Device> device =
        make_device(bench, model, contexts.front() + decoded_positions(options), rows);
    bench_decode(options, bench, model, *device, {contexts.front()}, rows, result);
  }
  return result;
}

/// Attention alone, of a local and of a global layer, over prompts longer than the model was made for.
void bench_attention(const Options& options, const BenchDevice& bench, Model model, ModelResult& result) {
  Config& config = model.config;
  const auto index_of = [&config](LayerKind kind) {
    return static_cast<int>(std::find(config.layers.begin(), config.layers.end(), kind) - config.layers.begin());
  };
  const int local = index_of(LayerKind::kLocal), global = index_of(LayerKind::kGlobal);
  if (std::max(local, global) >= config.layer_count())
    throw Error("--attention needs a model with both kinds of layers");
  config.layers.resize(static_cast<std::size_t>(std::max(local, global)) + 1);
  model.weights.layers.resize(config.layers.size());
  const std::unique_ptr<Device> device = make_device(bench, model, longest_of(options.attention), 1);
  for (const int tokens : options.attention) {
    const int chunk = std::min(chunk_of(bench), tokens);
    AttentionResult attention{.tokens = tokens};
    for (int repeat = 0; repeat < 2; ++repeat) {  // the first warms up
      attention.local_s = measure_attention(model, *device, local, tokens, chunk);
      attention.global_s = measure_attention(model, *device, global, tokens, chunk);
    }
    attention.local_flop = attention_flop(config, config.window, tokens);
    attention.global_flop = attention_flop(config, kNoWindow, tokens);
    result.attention.push_back(attention);
  }
}

/// Writes the random weights of one shape, with the demo model's tokenizer: to try programs on models of full size.
int save(const Options& options) {
  if (options.shapes.size() != 1 || options.types.size() != 1) throw Error("--save needs one --shape and one --type");
  const Model demo = load_demo_model();
  Model model = make_weights(options.shapes.front(), options.types.front(), /*is_gpu=*/true);
  model.tokenizer = demo.tokenizer;
  save_model(model, options.save);
  return 0;
}

/// Writes what was asked for to standard output. @throws Error if some of it could not be written.
void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) throw Error("cannot write to standard output");
}

void write_plot(const Report& report, const std::string& path) {
  const std::string document = plot(report);
  AtomicFile file(path);
  file.write(0, std::as_bytes(std::span(document)));
  file.commit();
}

int run(const Options& options) {
  if (!options.save.empty()) return save(options);
  // What cannot be written is told before anything is measured.
  if (!options.plot.empty()) const AtomicFile trial(options.plot);
  const std::optional<int> gpu = gpu_of(options.device);
  const bool is_gpu = gpu.has_value() || (options.device == "auto" && has_cuda_device());
  const BenchDevice bench{.is_gpu = is_gpu,
                          .gpu = gpu.value_or(0),
                          .threads = options.threads,
                          .chunk = options.chunk,
                          .kv_type = options.kv_type};
  Report report;

  const auto measure = [&](const Model& model, const std::string& label, const std::string& type) {
    check_tokens(options, model.config);
    if (report.device.empty()) {
      report.limits = measure_limits(options, bench);
      report.device = make_device(bench, model, 16, 1)->description();
      if (!options.is_json) print_limits(report);
    }
    ModelResult result = bench_model(options, bench, model, type);
    result.label = label;
    if (options.kv_type) result.cache = kv_type_name(*options.kv_type);
    if (!options.attention.empty()) bench_attention(options, bench, model, result);
    if (!options.is_json) {
      print_table(result, report.limits);
      flush_output();
    }
    report.models.push_back(std::move(result));
  };
  for (const std::string& shape : options.shapes) {
    for (const std::string& type : options.types) measure(make_weights(shape, type, is_gpu), shape, type);
  }
  if (options.shapes.empty()) {
    const Model model = options.model.empty() ? load_demo_model() : load_model(options.model);
    check_scales(model);
    measure(model, options.model.empty() ? "demo" : std::filesystem::path(options.model).stem().string(),
            std::string(name_of(model.weights.layers.front().qkv.type)));
  }

  if (options.is_json) {
    std::printf("%s\n", to_json(report).dump(2).c_str());
    flush_output();
  }
  if (!options.plot.empty()) write_plot(report, options.plot);
  return 0;
}

}  // namespace
}  // namespace gemma

int main(int argc, char** argv) {
  gemma::Options options;
  using gemma::cli::whole_number;
  constexpr int kMost = 1 << 20;
  CLI::App app("Measures how fast models read prompts and make tokens, each beside the limit of the machine.",
               "gemma-bench");
  app.set_version_flag("--version", "gemma-bench " GEMMA_VERSION);
  auto* model = app.add_option("-m,--model", options.model, "a .gemma file (default: the built-in demo model)");
  const auto list = [](CLI::Option* option) { return option->delimiter(',')->capture_default_str(); };
  app.add_option("--shape", options.shapes, "random weights of these shapes, made in memory: 2b, 9b, 27b")
      ->delimiter(',')
      ->check(CLI::IsMember({"2b", "9b", "27b"}))
      ->excludes(model);
  list(app.add_option("--type", options.types, "types of the random weights"))
      ->check(CLI::IsMember({"bf16", "q8", "q4"}));
  app.add_option("--device", options.device, "auto, cpu, cuda or cuda:N")
      ->check(gemma::check_device)
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--kv-type", [&options](const std::string& name) { options.kv_type = gemma::parse_kv_type(name); },
         "type of the cache: auto, f32, bf16 or q8 (default: auto, which is f32, on a GPU bf16)")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "q8"}));
  app.add_option("--bandwidth", options.bandwidth, "GB/s to measure against (default: what is measured here)")
      ->check(gemma::cli::number("above 0", [](float x) { return x > 0; }));
  app.add_option("--threads", options.threads, "CPU threads (default: one for each core)")
      ->check(whole_number(1, 1024));
  list(app.add_option("--context", options.contexts, "positions in the cache while decoding"))
      ->check(whole_number(0, kMost));
  list(app.add_option("--rows", options.rows, "sequences that decode at once; more than 1 at the first context only"))
      ->check(whole_number(1, 256));
  list(app.add_option("--prompt", options.prompts, "tokens of prompts; 0: none"))->check(whole_number(0, kMost));
  app.add_option("--attention", options.attention, "tokens of prompts for the attention of single layers")
      ->delimiter(',')
      ->check(whole_number(1, kMost));
  app.add_option("-n,--tokens", options.tokens, "tokens to decode")
      ->check(whole_number(1, kMost))
      ->capture_default_str();
  app.add_option("--chunk", options.chunk, "rows of a prompt read at once (default: 512, on a GPU 4096)")
      ->check(whole_number(1, kMost));
  app.add_option("--repeats", options.repeats, "how often a prompt is measured")
      ->check(whole_number(1, 1000))
      ->capture_default_str();
  app.add_flag("--profile", options.wants_profile,
               "where the time goes, at the first context and for the first prompt");
  app.add_option("--plot", options.plot, "draw the roofline with what was measured")->type_name("FILE.svg");
  app.add_option("--save", options.save, "only write the random weights as a model file, with the demo's tokenizer")
      ->type_name("FILE");
  app.add_flag("--json", options.is_json, "print one JSON document");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return gemma::end_parsing(app, error);
  }
  try {
    return gemma::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gemma-bench: %s\n", error.what());
    return 1;
  }
}
