#pragma once

#include <vector>

#include "device/device.h"

namespace gemma {

/// Gemma 2's forward pass over one batch of rows, from tokens to answers.
/// @return one Output for each entry of batch.outputs.
std::vector<Output> forward(const Config& config, Device& device, const Batch& batch);

}  // namespace gemma
