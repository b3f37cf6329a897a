#pragma once

#include <cstddef>
#include <string>

#include "device/device.h"
#include "model/model.h"

namespace gemma {

/// Why the CUDA device refuses a model whatever GPU there is: its widths, the types of its weights, norms that
/// quantised weights leave no room for, or the type of the cache. Empty if it does not. Asks no GPU, but reads the
/// norms.
std::string why_not_on_cuda(const Model& model, KvType cache);

/// Bytes of a GPU's memory, and of what a model needs of it.
struct GpuMemory {
  std::size_t available = 0, total = 0;
  std::size_t weights = 0, cache = 0, work = 0;

  std::size_t needed() const { return weights + cache + work; }
};

/// In one line: what does not fit, and each way out that this model and cache leave, with what it would take.
std::string explain_out_of_memory(const Model& model, const KvLayout& kv, const GpuMemory& memory);

}  // namespace gemma
