#pragma once

#include <span>
#include <vector>

#include "device/device.h"

namespace gemma {

/// Gemma 2's forward pass over one batch of rows, from tokens to answers, which are there after Device::finish.
/// @param answers  [batch.outputs.size()]; must stay where it is until then.
void begin_forward(const Config& config, Device& device, const Batch& batch, std::span<Output> answers);

/// Gemma 2's forward pass over one batch of rows, from tokens to answers.
/// @return one Output for each entry of batch.outputs.
std::vector<Output> forward(const Config& config, Device& device, const Batch& batch);

}  // namespace gemma
