#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "device/device.h"
#include "model/model.h"

namespace gemma {

/// Some timings of the same thing, in seconds.
struct Timings {
  double median = 0, fastest = 0, slowest = 0;
};

Timings summarize(std::vector<double> seconds);

/// What devices are made for measuring.
struct BenchDevice {
  bool is_gpu = false;
  int gpu = 0;                         ///< which one, as CUDA counts them
  int threads = 0;                     ///< of a CPU; 0: one for each core
  int chunk = 0;                       ///< rows of a prompt read at once; 0: as the engine does
  std::optional<KvType> kv_type = {};  ///< of the cache; none: as the engine does
};

int chunk_of(const BenchDevice& bench);
KvType kv_type_of(const BenchDevice& bench);

/// A device for `sequences` sequences of up to `context` positions.
std::unique_ptr<Device> make_device(const BenchDevice& bench, const Model& model, int context, int sequences);

/// Steps of `rows` sequences that decode together, each with `context` positions in the cache before. As the engine
/// does it: where the device runs ahead, one step is always given out before the last one's tokens are looked at.
/// @param host_share  when not nullptr, receives how much of a core the process used meanwhile
Timings measure_decode(const Model& model, Device& device, int context, int rows, int chunk, int steps,
                       double* host_share = nullptr);

/// Reading a prompt of `tokens` tokens, to its first answer.
Timings measure_prompt(const Model& model, Device& device, int tokens, int chunk, int repeats);

/// Where the time of decoding with `context` positions in the cache goes, part by part of a step: medians. By the
/// clocks in the device's kernel, where it has one for whole steps, else step by step of the forward pass.
std::vector<PhaseTime> profile_decode(const Model& model, Device& device, int context, int chunk, int steps);

/// A prompt of `tokens` tokens, step by step of the forward pass: seconds in all layers together. The device is waited
/// for after each, so that the sum is more than what the prompt takes.
std::vector<PhaseTime> profile_prompt(const Model& model, Device& device, int tokens, int chunk);

/// The attention of one layer over a prompt of `tokens` tokens: seconds, all chunks together.
double measure_attention(const Model& model, Device& device, int layer, int tokens, int chunk);

}  // namespace gemma
