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
  int rows = 1;
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

/// Sequences that run through the model side by side, without caring for what they say.
class Runner {
 public:
  Runner(const Model& model, Device& device) : model_(model), device_(device), cache_(device) {}

  void start(int sequences, int max_length) {
    for (int i = 0; i < sequences; ++i) ids_.push_back(cache_.create(max_length));
  }
  void stop() {
    for (const KvCache::Id id : ids_) cache_.remove(id);
    ids_.clear();
  }

  /// Reads a prompt of `tokens` tokens into every sequence, one after the other.
  void read_prompts(int tokens, int chunk) {
    for (const KvCache::Id id : ids_) {
      for (int read_so_far = 0; read_so_far < tokens; read_so_far += chunk) {
        const int rows = std::min(chunk, tokens - read_so_far);
        read(id, rows, read_so_far + rows == tokens);
      }
    }
  }

  /// Decodes as the engine does: where the device runs ahead, one step is always given out before the last one's tokens
  /// are looked at. @return seconds of each step
  std::vector<double> decode(int steps) {
    std::vector<double> seconds;
    std::vector<Output> answers[2];
    double last = now();
    int begun = 0;
    for (int i = 0; i < steps; ++i) {
      const int until = device_.runs_ahead() ? std::min(i + 2, steps) : i + 1;
      for (; begun < until; ++begun) {
        const int token = begun == 0 || !device_.runs_ahead() ? 2 : kSampledToken;
        Batch batch;
        for (int row = 0; row < static_cast<int>(ids_.size()); ++row) {
          batch.sequences.push_back(cache_.extend(ids_[static_cast<std::size_t>(row)], 1));
          batch.sequences.back().first_row = row;
          batch.rows.push_back({.token = token,
                                .position = batch.sequences.back().position,
                                .sequence = row,
                                .kind = RowKind::kGenerated});
          batch.outputs.push_back({.row = row, .sampling = Sampling{.temperature = 0}});
        }
        answers[begun % 2].assign(ids_.size(), {});
        begin_forward(model_.config, device_, batch, answers[begun % 2]);
      }
      device_.finish(begun - i - 1);
      const double time = now();
      seconds.push_back(time - last);
      last = time;
    }
    return seconds;
  }

 private:
  void read(KvCache::Id id, int rows, bool wants_token) {
    Batch batch;
    batch.sequences.push_back(cache_.extend(id, rows));
    for (int i = 0; i < rows; ++i) {
      const int position = batch.sequences[0].position + i;
      // Tokens spread over the vocabulary, so that embedding rows are not all in the cache.
      const int token = static_cast<int>((position * 7919ll + 2) % model_.config.vocab_size);
      batch.rows.push_back({.token = token, .position = position, .sequence = 0, .kind = RowKind::kPrompt});
    }
    if (wants_token) batch.outputs.push_back({.row = rows - 1, .sampling = Sampling{.temperature = 0}});
    forward(model_.config, device_, batch);
  }

  const Model& model_;
  Device& device_;
  KvCache cache_;
  std::vector<KvCache::Id> ids_;
};

/// Bytes that a decoding step must read: all weights but the embedding (a few rows of it are free), the head, and the
/// cache that its rows' queries see.
std::uint64_t decode_bytes(const Model& model, int window, int context, int rows, KvType type) {
  std::uint64_t bytes = model.weights.bytes();
  if (!model.config.is_embedding_tied) bytes -= model.weights.embed.bytes();
  const std::uint64_t position =
      2 * bytes_of(type) * static_cast<std::uint64_t>(model.config.kv_size()) * static_cast<std::uint64_t>(rows);
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

int run(const Options& options) {
  const Model model = !options.shape.empty()   ? random_model(config_of_shape(options.shape), 1, /*cheap=*/true)
                      : !options.model.empty() ? load_model(options.model)
                                               : load_demo_model();
  const Config& config = model.config;
  const int context = std::min(options.context, config.context - options.tokens);
  const int longest = std::max(context + options.tokens + 2, options.prompt) + 1;
  const bool is_on_gpu = options.device == "cuda" || (options.device == "auto" && has_cuda_device());
  const int default_chunk = is_on_gpu ? 2048 : 512;
  const int chunk = std::min(options.chunk > 0 ? options.chunk : default_chunk, std::max(options.prompt, context));
  if (is_on_gpu && options.bandwidth <= 0) {
    throw Error(
        "say with --bandwidth how many GB/s this GPU reads (an H100 3090): only a CPU's memory is measured yet");
  }
  const KvType kv_type = is_on_gpu ? KvType::kBf16 : KvType::kF32;
  const KvLayout kv = plan_kv_cache(config.window, longest, options.rows, kv_type);
  const int max_rows = std::max(chunk, options.rows);
  const std::unique_ptr<Device> device =
      is_on_gpu ? make_cuda_device(model, {.ordinal = 0, .max_rows = max_rows, .kv = kv})
                : make_cpu_device(model, {.threads = options.threads, .max_rows = max_rows, .kv = kv});
  const double bandwidth = options.bandwidth > 0 ? options.bandwidth * 1e9 : measure_read_bandwidth(options.threads);

  Runner runner(model, *device);
  std::vector<double> prompt_seconds, step_seconds;
  for (int repeat = 0; repeat <= options.repeats; ++repeat) {
    runner.start(1, longest);
    const double start = now();
    runner.read_prompts(options.prompt, chunk);
    // The first round warms up: it touches the pages of weights, cache and work space.
    if (repeat > 0) prompt_seconds.push_back(now() - start);
    runner.stop();
    if (options.prompt == 0) break;
  }
  runner.start(options.rows, longest);
  runner.read_prompts(context, chunk);
  runner.decode(2);  // warms up
  step_seconds = runner.decode(options.tokens);
  runner.stop();

  const Timings step = summarize(step_seconds);
  const std::uint64_t bytes = decode_bytes(model, config.window, context, options.rows, kv_type);
  const double floor = static_cast<double>(bytes) / bandwidth;
  const double tokens_per_s = options.rows / step.median;
  const double flop = prompt_flop(config, config.window, options.prompt);
  const Timings prompt = prompt_seconds.empty() ? Timings{} : summarize(prompt_seconds);

  if (options.is_json) {
    nlohmann::ordered_json json;
    json["device"] = device->description();
    json["model"] = model.name;
    json["type"] = options.type;
    json["read_bandwidth_gb_s"] = bandwidth / 1e9;
    json["decode"] = {{"context", context},
                      {"rows", options.rows},
                      {"tokens_per_s", tokens_per_s},
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
      "decode   %8.2f tokens/s, %d at once at context %d: %.3f ms a step (%.3f to %.3f), %.1f%% of the floor (%.3f ms "
      "for %.2f GB)\n",
      tokens_per_s, options.rows, context, step.median * 1e3, step.fastest * 1e3, step.slowest * 1e3,
      100 * floor / step.median, floor * 1e3, static_cast<double>(bytes) / 1e9);
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
      ->check(CLI::IsMember({"bf16"}))
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
  app.add_option("--rows", options.rows, "sequences that decode at once")
      ->check(CLI::Range(1, 256))
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
