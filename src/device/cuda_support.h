#pragma once

#include <string>

#include "device/device.h"
#include "model/model.h"

namespace gemma {

/// Why the CUDA device refuses a model whatever GPU there is: its widths, the types of its weights, or that of the
/// cache. Empty if it does not. Asks no GPU.
std::string why_not_on_cuda(const Model& model, KvType cache);

}  // namespace gemma
