#pragma once

#include "model/model_file.h"

namespace gemma {

/// A small configuration in which no two sizes are equal by accident; tests change what they are about.
inline Config small_config() {
  Config config;
  config.name = "small";
  config.hidden_size = 48;
  config.intermediate_size = 80;
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
