#include "model/config.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/error_text.h"
#include "support/small_model.h"

namespace gemma {
namespace {

TEST(Config, KnowsThePublishedShapes) {
  // Parameters as Hugging Face counts them for google/gemma-2-2b, 9b and 27b.
  struct Known {
    const char* shape;
    std::int64_t parameters;
  };
  for (const Known& known : {Known{"2b", 2'614'341'888}, Known{"9b", 9'241'705'984}, Known{"27b", 27'227'128'320}}) {
    const Config config = config_of_shape(known.shape);
    config.validate();
    EXPECT_EQ(config.embedding_parameters() + config.other_parameters(), known.parameters) << known.shape;
  }
  EXPECT_NE(error_text([] { config_of_shape("70b"); }).find("70b"), std::string::npos);
}

TEST(Config, RoundsTheEmbeddingScaleToBf16) {
  Config config = small_config();
  config.hidden_size = 320;
  EXPECT_EQ(config.embedding_scale(), 17.875f);  // sqrt(320) = 17.889
  config.hidden_size = 3584;
  EXPECT_EQ(config.embedding_scale(), 59.75f);  // sqrt(3584) = 59.867
}

TEST(Config, RefusesValuesThatMakeNoSense) {
  struct Case {
    const char* name;
    void (*spoil)(Config&);
  };
  const Case cases[] = {
      {"hidden_size", [](Config& c) { c.hidden_size = 0; }},
      {"hidden_size", [](Config& c) { c.hidden_size = -4; }},
      {"intermediate_size", [](Config& c) { c.intermediate_size = 1 << 30; }},
      {"num_attention_heads", [](Config& c) { c.heads = 0; }},
      {"num_key_value_heads", [](Config& c) { c.kv_heads = 0; }},
      {"multiple of num_key_value_heads", [](Config& c) { c.kv_heads = 3; }},
      {"head_dim", [](Config& c) { c.head_dim = 40; }},
      {"head_dim", [](Config& c) { c.head_dim = 512; }},
      {"vocab_size", [](Config& c) { c.vocab_size = 0; }},
      {"sliding_window", [](Config& c) { c.window = 0; }},
      {"max_position_embeddings", [](Config& c) { c.context = 0; }},
      {"num_hidden_layers", [](Config& c) { c.layers.clear(); }},
      {"rope_theta", [](Config& c) { c.rope_theta = std::numeric_limits<double>::quiet_NaN(); }},
      {"rms_norm_eps", [](Config& c) { c.rms_norm_eps = -1e-6; }},
      {"query_pre_attn_scalar", [](Config& c) { c.query_pre_attn_scalar = 0; }},
      {"attn_logit_softcapping", [](Config& c) { c.attention_softcap = 0; }},
      {"final_logit_softcapping", [](Config& c) { c.final_softcap = -30; }},
  };
  small_config().validate();
  for (const Case& spoilt : cases) {
    Config config = small_config();
    spoilt.spoil(config);
    EXPECT_NE(error_text([&] { config.validate(); }).find(spoilt.name), std::string::npos) << spoilt.name;
  }
}

}  // namespace
}  // namespace gemma
