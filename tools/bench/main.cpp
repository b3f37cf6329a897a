// gemma-bench: measures how fast a model reads prompts and makes tokens, each beside the limit of the machine.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "bench/bandwidth.h"
#include "device/device.h"
#include "gemma/error.h"
#include "model/model_file.h"
#include "runtime/kv_cache.h"
#include "runtime/transformer.h"

namespace gemma {
namespace {

struct Options {
  std::string model;
  std::string shape;
  std::string type = "bf16";
  std::string device = "auto";
  double bandwidth = 0;
  int threads = 0;
  int context = 512;
  int prompt = 512;
  int tokens = 16;
  int chunk = 0;  // 0: as the engine does
  int repeats = 3;
  bool is_json = false;
};

/// Median and extremes of some timings in seconds.
struct Timings {
  double median = 0, fastest = 0, slowest = 0;
};

Timings summarize(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// One sequence that runs through the model without caring for what it says.
class Runner {
 public:
  Runner(const Model& model, Device& device) : model_(model), device_(device), cache_(device) {}

  void start(int max_length) { id_ = cache_.create(max_length); }
  void stop() { cache_.remove(id_); }

  void read(int rows, RowKind kind, bool wants_token) {
    Batch batch;
    batch.sequences.push_back(cache_.extend(id_, rows));
    for (int i = 0; i < rows; ++i) {
      const int position = batch.sequences[0].position + i;
      // Tokens spread over the vocabulary, so that embedding rows are not all in the cache.
      const int token = static_cast<int>((position * 7919ll + 2) % model_.config.vocab_size);
      batch.rows.push_back({.token = token, .position = position, .sequence = 0, .kind = kind});
    }
    if (wants_token) batch.outputs.push_back({.row = rows - 1, .sampling = Sampling{.temperature = 0}});
    forward(model_.config, device_, batch);
  }

  /// Decodes as the engine does: where the device runs ahead, one step is always given out before the last one's token
  /// is looked at. @return seconds of each step
  std::vector<double> decode(int tokens) {
    std::vector<double> seconds;
    std::vector<Output> answers[2];
    double last = now();
    int begun = 0;
    for (int i = 0; i < tokens; ++i) {
      const int until = device_.runs_ahead() ? std::min(i + 2, tokens) : i + 1;
      for (; begun < until; ++begun) {
        Batch batch;
        batch.sequences.push_back(cache_.extend(id_, 1));
        const int token = begun == 0 || !device_.runs_ahead() ? 2 : kSampledToken;
        batch.rows.push_back(
            {.token = token, .position = batch.sequences[0].position, .sequence = 0, .kind = RowKind::kGenerated});
        batch.outputs.push_back({.row = 0, .sampling = Sampling{.temperature = 0}});
        answers[begun % 2].assign(1, {});
        begin_forward(model_.config, device_, batch, answers[begun % 2]);
      }
      device_.finish(begun - i - 1);
      const double time = now();
      seconds.push_back(time - last);
      last = time;
    }
    return seconds;
  }

  void read_prompt(int tokens, int chunk) {
    for (int read_so_far = 0; read_so_far < tokens; read_so_far += chunk) {
      const int rows = std::min(chunk, tokens - read_so_far);
      read(rows, RowKind::kPrompt, read_so_far + rows == tokens);
    }
  }

 private:
  const Model& model_;
  Device& device_;
  KvCache cache_;
  KvCache::Id id_ = 0;
};

/// Bytes that one decoded token must read: all weights but the embedding (one row of it is free), the head, and the
/// cache that its queries see.
std::uint64_t decode_bytes(const Model& model, int window, int context, KvType type) {
  std::uint64_t bytes = model.weights.bytes();
  if (!model.config.is_embedding_tied) bytes -= model.weights.embed.bytes();
  const std::uint64_t position =
      2 * head_bytes(type, model.config.head_dim) * static_cast<std::uint64_t>(model.config.kv_heads);
  bytes += position * static_cast<std::uint64_t>(model.config.local_layer_count()) *
           static_cast<std::uint64_t>(std::min(window, context));
  bytes +=
      position * static_cast<std::uint64_t>(model.config.global_layer_count()) * static_cast<std::uint64_t>(context);
  return bytes;
}

/// Operations of reading a prompt: 2 for each parameter outside the embedding and token, and attention's two products.
double prompt_flop(const Config& config, int window, int tokens) {
  double seen_local = 0, seen_global = 0;
  for (int position = 0; position < tokens; ++position) {
    seen_local += std::min(position + 1, window);
    seen_global += position + 1;
  }
  const double attention =
      4.0 * config.query_size() * (seen_local * config.local_layer_count() + seen_global * config.global_layer_count());
  return 2.0 * static_cast<double>(config.other_parameters()) * tokens + attention;
}

/// What gemma-convert makes of a type: the embedding, which is also the head, is at least q8.
WeightTypes types_of(WeightType type) {
  return {.layers = type, .embed = type == WeightType::kBf16 ? WeightType::kBf16 : WeightType::kQ8};
}

int run(const Options& options) {
  const Model model = !options.shape.empty()   ? random_model(config_of_shape(options.shape), 1, /*cheap=*/true,
                                                              types_of(parse_weight_type(options.type)))
                      : !options.model.empty() ? load_model(options.model)
                                               : load_demo_model();
  const Config& config = model.config;
  const int context = std::min(options.context, config.context - options.tokens);
  const int longest = std::max(context + options.tokens + 2, options.prompt) + 1;
  const bool is_on_gpu = options.device == "cuda" || (options.device == "auto" && has_cuda_device());
  const int default_chunk = is_on_gpu ? 2048 : 512;
  const int chunk = std::min(options.chunk > 0 ? options.chunk : default_chunk, std::max(options.prompt, 1));
  if (is_on_gpu && options.bandwidth <= 0) {
    throw Error(
        "say with --bandwidth how many GB/s this GPU reads (an H100 3090): only a CPU's memory is measured yet");
  }
  const KvType kv_type = is_on_gpu ? KvType::kBf16 : KvType::kF32;
  const KvLayout kv = plan_kv_cache(config.window, longest, 1, kv_type);
  const std::unique_ptr<Device> device =
      is_on_gpu ? make_cuda_device(model, {.ordinal = 0, .max_rows = chunk, .kv = kv})
                : make_cpu_device(model, {.threads = options.threads, .max_rows = chunk, .kv = kv});
  const double bandwidth = options.bandwidth > 0 ? options.bandwidth * 1e9 : measure_read_bandwidth(options.threads);

  Runner runner(model, *device);
  std::vector<double> prompt_seconds, step_seconds;
  for (int repeat = 0; repeat <= options.repeats; ++repeat) {
    runner.start(longest);
    const double start = now();
    runner.read_prompt(options.prompt, chunk);
    // The first round warms up: it touches the pages of weights, cache and work space.
    if (repeat > 0) prompt_seconds.push_back(now() - start);
    runner.stop();
    if (options.prompt == 0) break;
  }
  runner.start(longest);
  runner.read_prompt(context, chunk);
  runner.decode(2);  // warms up
  step_seconds = runner.decode(options.tokens);
  runner.stop();

  const Timings step = summarize(step_seconds);
  const std::uint64_t bytes = decode_bytes(model, config.window, context, kv_type);
  const double floor = static_cast<double>(bytes) / bandwidth;
  const double flop = prompt_flop(config, config.window, options.prompt);
  const Timings prompt = prompt_seconds.empty() ? Timings{} : summarize(prompt_seconds);

  if (options.is_json) {
    nlohmann::ordered_json json;
    json["device"] = device->description();
    json["model"] = model.name;
    json["type"] = options.type;
    json["read_bandwidth_gb_s"] = bandwidth / 1e9;
    json["decode"] = {{"context", context},
                      {"tokens_per_s", 1 / step.median},
                      {"ms", step.median * 1e3},
                      {"fastest_ms", step.fastest * 1e3},
                      {"slowest_ms", step.slowest * 1e3},
                      {"bytes", bytes},
                      {"floor_ms", floor * 1e3},
                      {"share_of_floor", floor / step.median}};
    if (!prompt_seconds.empty()) {
      json["prompt"] = {{"tokens", options.prompt},
                        {"chunk", chunk},
                        {"tokens_per_s", options.prompt / prompt.median},
                        {"s", prompt.median},
                        {"fastest_s", prompt.fastest},
                        {"slowest_s", prompt.slowest},
                        {"gflop", flop / 1e9},
                        {"gflop_per_s", flop / prompt.median / 1e9}};
    }
    std::cout << json.dump(2) << '\n';
    return 0;
  }
  std::printf("device   %s, reads %.1f GB/s\n", device->description().c_str(), bandwidth / 1e9);
  std::printf("model    %s, %s, %.2f GB of weights\n", model.name.c_str(), options.type.c_str(),
              static_cast<double>(model.weights.bytes()) / 1e9);
  std::printf(
      "decode   %8.2f tokens/s at context %d: %.2f ms a token (%.2f to %.2f), %.1f%% of the floor (%.2f ms for %.2f "
      "GB)\n",
      1 / step.median, context, step.median * 1e3, step.fastest * 1e3, step.slowest * 1e3, 100 * floor / step.median,
      floor * 1e3, static_cast<double>(bytes) / 1e9);
  if (!prompt_seconds.empty()) {
    std::printf("prompt   %8.2f tokens/s for %d tokens in chunks of %d: %.3f s (%.3f to %.3f), %.0f GFLOP/s\n",
                options.prompt / prompt.median, options.prompt, chunk, prompt.median, prompt.fastest, prompt.slowest,
                flop / prompt.median / 1e9);
  }
  return 0;
}

}  // namespace
}  // namespace gemma

int main(int argc, char** argv) {
  gemma::Options options;
  CLI::App app{"Measures how fast a model reads prompts and makes tokens, each beside the limit of the machine."};
  auto* model = app.add_option("-m,--model", options.model, "a .gemma file (default: the built-in demo model)");
  app.add_option("--shape", options.shape, "random weights of this shape, made in memory: 2b, 9b or 27b")
      ->check(CLI::IsMember({"2b", "9b", "27b"}))
      ->excludes(model);
  app.add_option("--type", options.type, "type of the random weights")
      ->check(CLI::IsMember({"bf16", "q8", "q4"}))
      ->capture_default_str();
  app.add_option("--device", options.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--bandwidth", options.bandwidth,
                 "GB/s to measure against (default: what this machine's memory gives)");
  app.add_option("--threads", options.threads, "CPU threads (default: one for each core)")->check(CLI::Range(1, 1024));
  app.add_option("--context", options.context, "positions in the cache while decoding")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--prompt", options.prompt, "tokens of the prompt; 0: no prompt is measured")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("-n,--tokens", options.tokens, "tokens to decode")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--chunk", options.chunk, "rows of a prompt read at once (default: 512, on a GPU 2048)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--repeats", options.repeats, "how often a prompt is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options.is_json, "print one JSON document");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    return gemma::run(options);
  } catch (const std::exception& error) {
    std::cerr << "gemma-bench: " << error.what() << '\n';
    return 1;
  }
}
