#include "model/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "support/error_text.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

using testing::HasSubstr;

nlohmann::json golden(const std::string& name) { return read_json_file(GEMMA_SOURCE_DIR "/tests/golden/hf/" + name); }

// A config.json in transformers' newer spelling, with one member changed.
nlohmann::json with(const std::string& member, const nlohmann::json& value) {
  nlohmann::json json = golden("config.json");
  json[member] = value;
  return json;
}

TEST(HfConfig, ReadsBothSpellingsAlike) {
  const Config newer = config_from_hf(golden("config.json"), "config.json");
  EXPECT_EQ(config_from_hf(golden("config_classic.json"), "config.json"), newer);
  EXPECT_EQ(newer.hidden_size, 320);
  EXPECT_EQ(newer.intermediate_size, 1024);
  EXPECT_EQ(newer.heads, 8);
  EXPECT_EQ(newer.kv_heads, 4);
  EXPECT_EQ(newer.head_dim, 64);
  EXPECT_EQ(newer.vocab_size, 4096);
  EXPECT_EQ(newer.window, 128);
  EXPECT_EQ(newer.context, 1024);
  EXPECT_EQ(newer.rope_theta, 10000);
  EXPECT_EQ(newer.rms_norm_eps, 1e-6);
  EXPECT_EQ(newer.query_pre_attn_scalar, 64);
  EXPECT_EQ(newer.attention_softcap, 50.0f);
  EXPECT_EQ(newer.final_softcap, 30.0f);
  EXPECT_TRUE(newer.is_embedding_tied);
  EXPECT_EQ(newer.layers, alternating_layers(8));
}

TEST(HfConfig, HonoursEveryMember) {
  nlohmann::json json = golden("config.json");
  json["attn_logit_softcapping"] = nullptr;
  json["final_logit_softcapping"] = 12.5;
  json["rope_parameters"] = {{"rope_theta", 500000}};
  json["layer_types"] = {"full_attention", "full_attention", "sliding_attention"};
  json["num_hidden_layers"] = 3;
  json["tie_word_embeddings"] = false;
  json["query_pre_attn_scalar"] = 144;
  const Config config = config_from_hf(json, "config.json");
  EXPECT_EQ(config.attention_softcap, std::nullopt);
  EXPECT_EQ(config.final_softcap, 12.5f);
  EXPECT_EQ(config.rope_theta, 500000);
  EXPECT_EQ(config.layers, (std::vector{LayerKind::kGlobal, LayerKind::kGlobal, LayerKind::kLocal}));
  EXPECT_FALSE(config.is_embedding_tied);
  EXPECT_EQ(config.query_pre_attn_scalar, 144);
}

TEST(HfConfig, StartsAnOddNumberOfUnnamedLayersWithALocalOne) {
  nlohmann::json json = golden("config_classic.json");
  json["num_hidden_layers"] = 3;
  EXPECT_EQ(config_from_hf(json, "config.json").layers,
            (std::vector{LayerKind::kLocal, LayerKind::kGlobal, LayerKind::kLocal}));
}

TEST(HfConfig, TakesGemmasOwnValuesForMembersThatAreOftenLeftOut) {
  nlohmann::json json = golden("config_classic.json");
  for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping", "rope_theta", "rms_norm_eps",
                           "tie_word_embeddings", "hidden_activation", "architectures"}) {
    json.erase(name);
  }
  EXPECT_EQ(config_from_hf(json, "config.json"), config_from_hf(golden("config.json"), "config.json"));
}

TEST(HfConfig, RefusesOtherModelsByName) {
  struct Case {
    const char* type;
    const char* name;
  };
  for (const Case& other : {Case{"gemma", "the first Gemma"}, Case{"gemma3", "Gemma 3"}, Case{"gemma3_text", "Gemma 3"},
                            Case{"llama", "Llama"}, Case{"something_new", "'something_new'"}}) {
    EXPECT_THAT(error_text([&] { config_from_hf(with("model_type", other.type), "config.json"); }),
                AllOf(HasSubstr(other.name), HasSubstr("Only Gemma 2")));
  }
  EXPECT_THAT(error_text([] { config_from_hf(with("model_type", nullptr), "config.json"); }),
              HasSubstr("config.json has no 'model_type'"));
  EXPECT_THAT(
      error_text([] { config_from_hf(with("architectures", {"Gemma2ForSequenceClassification"}), "config.json"); }),
      HasSubstr("architectures other than 'Gemma2ForCausalLM'"));
}

TEST(HfConfig, RefusesFeaturesThatGemma2DoesNotHave) {
  struct Case {
    const char* member;
    nlohmann::json value;
    const char* problem;
  };
  const Case cases[] = {
      {"quantization_config", {{"load_in_4bit", true}}, "quantised"},
      {"attention_bias", true, "attention_bias"},
      {"use_bidirectional_attention", true, "use_bidirectional_attention"},
      {"hidden_activation", "silu", "hidden_activation 'silu'"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "scales RoPE"},
      {"rope_scaling", {{"rope_type", "yarn"}}, "scales RoPE"},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}, {"factor", 8}}, "scales RoPE ('factor'"},
      {"rope_parameters", "text", "not an object"},
      {"layer_types", {"chunked_attention"}, "layer_types other than"},
      {"layer_types", {"full_attention"}, "1 layer_types, but num_hidden_layers is 8"},
      {"num_hidden_layers", 1 << 30, "layer_types"},
      {"hidden_size", "320", "'hidden_size' that is not a whole number"},
      {"hidden_size", nullptr, "no 'hidden_size'"},
      {"hidden_size", 1e99, "'hidden_size' that is not a whole number"},
      {"sliding_window", 0, "sliding_window is 0"},
  };
  for (const Case& bad : cases) {
    EXPECT_THAT(error_text([&] { config_from_hf(with(bad.member, bad.value), "config.json"); }),
                HasSubstr(bad.problem));
  }
  nlohmann::json huge = golden("config_classic.json");
  huge["num_hidden_layers"] = 1 << 30;
  EXPECT_THAT(error_text([&] { config_from_hf(huge, "config.json"); }), HasSubstr("num_hidden_layers"));
}

TEST(HfConfig, CollectsStopTokensAndSamplingDefaults) {
  const TemporaryDirectory directory;
  const nlohmann::json config = {{"eos_token_id", 1}};
  EXPECT_EQ(read_generation_defaults(directory.path(), config), (GenerationDefaults{.stop_tokens = {1}}));

  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id": [107, 1], "top_p": 0.9, "top_k": null})";
  EXPECT_EQ(read_generation_defaults(directory.path(), config),
            (GenerationDefaults{.stop_tokens = {107, 1}, .top_p = 0.9f}));

  std::ofstream(directory / "generation_config.json") << R"({"do_sample": false, "temperature": 0.5})";
  EXPECT_EQ(read_generation_defaults(directory.path(), config).temperature, 0.0f);

  std::ofstream(directory / "generation_config.json") << R"({"eos_token_id": ["x"]})";
  EXPECT_THAT(error_text([&] { read_generation_defaults(directory.path(), config); }), HasSubstr("eos_token_id"));
}

TEST(HfConfig, TakesAChatTemplateForTheSignOfAChatModel) {
  const TemporaryDirectory directory;
  const nlohmann::json config = {{"eos_token_id", {1, 107}}};
  EXPECT_FALSE(read_generation_defaults(directory.path(), config).is_chat);
  std::ofstream(directory / "tokenizer_config.json") << R"({"chat_template": null})";
  EXPECT_FALSE(read_generation_defaults(directory.path(), config).is_chat);
  std::ofstream(directory / "tokenizer_config.json") << R"({"chat_template": "{{ bos_token }}..."})";
  EXPECT_TRUE(read_generation_defaults(directory.path(), config).is_chat);
  std::filesystem::remove(directory / "tokenizer_config.json");
  std::ofstream(directory / "chat_template.jinja") << "{{ bos_token }}...";
  EXPECT_TRUE(read_generation_defaults(directory.path(), config).is_chat);
}

}  // namespace
}  // namespace gemma
