#pragma once

#include <cstdint>
#include <string_view>

#include "device/device.h"
#include "model/model.h"

namespace gemma {

/// What a piece of work cannot do without.
struct Cost {
  double bytes = 0;  ///< that must be read from memory
  double flop = 0;   ///< float operations, a multiplication and an addition being two
};

/// One decoding step of `rows` sequences: all weights but the embedding once (a few rows of it are free), as they are
/// stored, and the cache that the rows' queries see. Where rows are whole blocks of 256 columns, as those of Gemma 2
/// are, a GPU's packed weights have exactly the bytes of the file's.
Cost decode_cost(const Model& model, int window, int context, int rows, KvType type);

/// Bytes of such a step that one part of it reads: "qkv", "attend", "attention_out", "gate_up", "down", "mlp" (both) or
/// "logits"; 0 for every other name.
double bytes_of_part(const Model& model, std::string_view part, int window, int context, int rows, KvType type);

/// Reading a prompt: all weights but embedding and head once for each chunk; 2 FLOP for each of their parameters and
/// each token, and attention's two products over the keys that are seen.
Cost prompt_cost(const Model& model, int window, int tokens, int chunk);

/// FLOP of one layer's attention over a prompt.
double attention_flop(const Config& config, int window, int tokens);

}  // namespace gemma
