#pragma once

#include "model/model_file.h"

namespace gemma {

/// A small configuration in which no two sizes are equal by accident; tests change what they are about.
/// @param width_multiple  hidden and intermediate size are rounded up to a multiple of this.
inline Config small_config(int width_multiple = 1) {
  const auto rounded_up = [&](int width) { return (width + width_multiple - 1) / width_multiple * width_multiple; };
  Config config;
  config.name = "small";
  config.hidden_size = rounded_up(48);
  config.intermediate_size = rounded_up(80);
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.vocab_size = 67;
  config.window = 7;
  config.context = 1024;
  config.query_pre_attn_scalar = 24;
  config.layers = alternating_layers(3);
  return config;
}

}  // namespace gemma
