#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bench/floor.h"
#include "bench/measure.h"

namespace gemma {

struct DecodeResult {
  int context = 0;  ///< positions in the cache of each sequence
  int rows = 0;     ///< sequences
  Timings step;
  Cost cost;  ///< of a step
};

struct PromptResult {
  int tokens = 0;
  int chunk = 0;
  Timings whole;
  Cost cost;
};

/// One layer's attention over a prompt.
struct AttentionResult {
  int tokens = 0;
  double local_s = 0, global_s = 0;
  double local_flop = 0, global_flop = 0;
};

/// Where the time of something goes.
struct Profile {
  std::vector<PhaseTime> parts;
  std::vector<double> bytes;  ///< that each part reads; may be empty
};

struct ModelResult {
  std::string name, type;
  std::string label = {};  ///< a short name
  std::string cache = {};  ///< its type, where one was asked for
  double weights_bytes = 0;
  std::vector<DecodeResult> decode;
  std::vector<PromptResult> prompt;
  std::vector<AttentionResult> attention;
  Profile decode_profile, prompt_profile;
  double host_share = 0;  ///< of one core, while decoding
};

struct Report {
  std::string device;
  DeviceLimits limits;
  std::vector<ModelResult> models;
};

/// Share of what the device reaches at best: of its bandwidth for a decoding step, of its products for a prompt.
double share(const DecodeResult& result, const DeviceLimits& limits);
double share(const PromptResult& result, const DeviceLimits& limits);

void print_limits(const Report& report);
void print_table(const ModelResult& model, const DeviceLimits& limits);
nlohmann::ordered_json to_json(const Report& report);

}  // namespace gemma
