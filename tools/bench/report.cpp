#include "bench/report.h"

#include <cstdio>
#include <nlohmann/json.hpp>

namespace gemma {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Timings& timings) {
  return {{"median", timings.median * 1e3}, {"fastest", timings.fastest * 1e3}, {"slowest", timings.slowest * 1e3}};
}

Json to_json(const Profile& profile, const DeviceLimits& limits) {
  Json json = Json::array();
  for (std::size_t i = 0; i < profile.parts.size(); ++i) {
    const PhaseTime& part = profile.parts[i];
    json.push_back({{"part", part.name}, {"ms", part.busy_s * 1e3}, {"waiting_ms", part.waiting_s * 1e3}});
    if (i < profile.bytes.size()) json.back()["floor_ms"] = 1e3 * profile.bytes[i] / limits.read_bytes_per_s;
  }
  return json;
}

void print_profile(const char* what, const Profile& profile, const DeviceLimits& limits) {
  double total = 0, waiting = 0;
  for (const PhaseTime& part : profile.parts) {
    total += part.busy_s + part.waiting_s;
    waiting += part.waiting_s;
  }
  if (total == 0) return;
  const auto print_time = [total](double seconds) {
    std::printf("  %9.3f  %5.1f%%", seconds * 1e3, 100 * seconds / total);
  };
  std::printf("  %s\n%20s         ms   share%s%s\n", what, "", waiting > 0 ? "    waiting   share" : "",
              profile.bytes.empty() ? "" : "   floor ms");
  for (std::size_t i = 0; i < profile.parts.size(); ++i) {
    const PhaseTime& part = profile.parts[i];
    std::printf("    %-16s", part.name);
    print_time(part.busy_s);
    if (waiting > 0) print_time(part.waiting_s);
    if (i < profile.bytes.size()) std::printf("  %9.3f", 1e3 * profile.bytes[i] / limits.read_bytes_per_s);
    std::printf("\n");
  }
}

}  // namespace

double share(const DecodeResult& result, const DeviceLimits& limits) {
  return result.cost.bytes / limits.read_bytes_per_s / result.step.median;
}

double share(const PromptResult& result, const DeviceLimits& limits) {
  return result.cost.flop / limits.multiply_flop_per_s / result.whole.median;
}

void print_limits(const Report& report) {
  std::printf("%s: reads %.1f GB/s, multiplies %.2f TFLOP/s\n", report.device.c_str(),
              report.limits.read_bytes_per_s / 1e9, report.limits.multiply_flop_per_s / 1e12);
}

void print_table(const ModelResult& model, const DeviceLimits& limits) {
  std::printf("\n%s, %s%s, %.2f GB of weights\n", model.name.c_str(), model.type.c_str(),
              model.cache.empty() ? "" : (", cache in " + model.cache).c_str(), model.weights_bytes / 1e9);
  if (!model.decode.empty())
    std::printf(
        "  decode  context   rows   tokens/s   ms a step (fastest, slowest)      GB   GFLOP  floor ms  share\n");
  for (const DecodeResult& result : model.decode) {
    std::printf("          %7d %6d %10.1f %11.3f (%.3f, %.3f) %11.3f %7.1f %9.3f %5.1f%%\n", result.context,
                result.rows, result.rows / result.step.median, result.step.median * 1e3, result.step.fastest * 1e3,
                result.step.slowest * 1e3, result.cost.bytes / 1e9, result.cost.flop / 1e9,
                1e3 * result.cost.bytes / limits.read_bytes_per_s, 100 * share(result, limits));
  }
  if (!model.prompt.empty())
    std::printf(
        "  prompt   tokens  chunk   tokens/s          ms (fastest, slowest)      GB   TFLOP  floor ms  share\n");
  for (const PromptResult& result : model.prompt) {
    std::printf("          %7d %6d %10.1f %11.3f (%.3f, %.3f) %11.3f %7.2f %9.3f %5.1f%%\n", result.tokens,
                result.chunk, result.tokens / result.whole.median, result.whole.median * 1e3,
                result.whole.fastest * 1e3, result.whole.slowest * 1e3, result.cost.bytes / 1e9,
                result.cost.flop / 1e12, 1e3 * result.cost.flop / limits.multiply_flop_per_s,
                100 * share(result, limits));
  }
  if (!model.attention.empty())
    std::printf(
        "  attention of a layer: tokens   local ms  TFLOP/s   global ms  TFLOP/s   local time / (n x window at "
        "the global layer's speed)\n");
  for (const AttentionResult& result : model.attention) {
    const double at_global_speed = result.local_flop / (result.global_flop / result.global_s);
    std::printf("                       %7d %10.3f %8.1f %11.3f %8.1f   %.2f\n", result.tokens, result.local_s * 1e3,
                result.local_flop / result.local_s / 1e12, result.global_s * 1e3,
                result.global_flop / result.global_s / 1e12, result.local_s / at_global_speed);
  }
  print_profile("a decoding step, all layers together", model.decode_profile, limits);
  print_profile("a prompt, waiting for the device after each step", model.prompt_profile, limits);
  if (!model.decode.empty()) std::printf("  host while decoding: %.1f%% of a core\n", 100 * model.host_share);
}

Json to_json(const Report& report) {
  Json json;
  json["device"] = report.device;
  json["read_gb_per_s"] = report.limits.read_bytes_per_s / 1e9;
  json["multiply_tflop_per_s"] = report.limits.multiply_flop_per_s / 1e12;
  json["models"] = Json::array();
  for (const ModelResult& model : report.models) {
    Json decode = Json::array(), prompt = Json::array(), attention = Json::array();
    for (const DecodeResult& result : model.decode) {
      decode.push_back({{"context", result.context},
                        {"rows", result.rows},
                        {"tokens_per_s", result.rows / result.step.median},
                        {"ms", to_json(result.step)},
                        {"bytes", result.cost.bytes},
                        {"flop", result.cost.flop},
                        {"floor_ms", 1e3 * result.cost.bytes / report.limits.read_bytes_per_s},
                        {"share", share(result, report.limits)}});
    }
    for (const PromptResult& result : model.prompt) {
      prompt.push_back({{"tokens", result.tokens},
                        {"chunk", result.chunk},
                        {"tokens_per_s", result.tokens / result.whole.median},
                        {"ms", to_json(result.whole)},
                        {"bytes", result.cost.bytes},
                        {"flop", result.cost.flop},
                        {"floor_ms", 1e3 * result.cost.flop / report.limits.multiply_flop_per_s},
                        {"share", share(result, report.limits)}});
    }
    for (const AttentionResult& result : model.attention) {
      attention.push_back({{"tokens", result.tokens},
                           {"local_ms", result.local_s * 1e3},
                           {"global_ms", result.global_s * 1e3},
                           {"local_flop", result.local_flop},
                           {"global_flop", result.global_flop}});
    }
    json["models"].push_back({{"model", model.name},
                              {"type", model.type},
                              {"cache", model.cache},
                              {"weights_bytes", model.weights_bytes},
                              {"decode", std::move(decode)},
                              {"prompt", std::move(prompt)},
                              {"attention", std::move(attention)},
                              {"decode_profile", to_json(model.decode_profile, report.limits)},
                              {"prompt_profile", to_json(model.prompt_profile, report.limits)},
                              {"host_share_of_a_core", model.host_share}});
  }
  return json;
}

}  // namespace gemma
