#include "model/hf_config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "gemma/error.h"
#include "model/input_file.h"
#include "model/json_fields.h"
#include "model/metadata.h"
#include "model/quote.h"

namespace gemma {
namespace {

constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{64} << 20;

[[noreturn]] void refuse_model(const std::string& type, const JsonFields& fields) {
  static const std::map<std::string, std::string> kKnown = {
      {"gemma", "the first Gemma"},
      {"gemma3", "Gemma 3"},
      {"gemma3_text", "Gemma 3"},
      {"gemma3n", "Gemma 3n"},
      {"gemma3n_text", "Gemma 3n"},
      {"gemma4", "Gemma 4"},
      {"paligemma", "PaliGemma"},
      {"recurrent_gemma", "RecurrentGemma"},
      {"llama", "Llama"},
      {"mistral", "Mistral"},
      {"mixtral", "Mixtral"},
      {"qwen2", "Qwen 2"},
      {"qwen3", "Qwen 3"},
      {"phi3", "Phi-3"},
      {"t5", "T5"},
      {"gpt2", "GPT-2"},
  };
  const auto known = kKnown.find(type);
  const std::string name = known == kKnown.end() ? "" : known->second + " ";
  fields.fail("describes a " + name + "model (model_type " + in_quotes(type) +
              "). Only Gemma 2 (model_type 'gemma2') can be converted");
}

void check_features(const JsonFields& fields) {
  if (fields.has("quantization_config")) {
    fields.fail("describes a quantised model. Convert the original one with bf16, f16 or f32 weights instead");
  }
  if (fields.optional_boolean("attention_bias").value_or(false)) {
    fields.fail("has attention_bias true, which Gemma 2 does not have");
  }
  if (fields.optional_boolean("use_bidirectional_attention").value_or(false)) {
    fields.fail("has use_bidirectional_attention true; only causal models can generate text");
  }
  // transformers reads hidden_activation; hidden_act stands in Google's repositories for old versions' sake.
  const std::string activation = fields.optional_text("hidden_activation").value_or("gelu_pytorch_tanh");
  if (activation != "gelu_pytorch_tanh") {
    fields.fail("has hidden_activation " + in_quotes(activation) + ", but Gemma 2 uses 'gelu_pytorch_tanh'");
  }
  if (!fields.has("architectures")) return;
  const nlohmann::json& architectures = fields.member("architectures");
  if (!architectures.is_array() ||
      std::find(architectures.begin(), architectures.end(), "Gemma2ForCausalLM") == architectures.end()) {
    fields.fail("has architectures other than 'Gemma2ForCausalLM'; only that one generates text");
  }
}

// Positions are rotated by the plain frequencies or not at all: no stretching of the context.
void check_rope_type(const nlohmann::json& rope, const JsonFields& fields) {
  if (!rope.is_object()) fields.fail("has RoPE parameters that are not an object");
  for (const auto& [name, value] : rope.items()) {
    if (name == "rope_theta") continue;
    const bool is_type = name == "rope_type" || name == "type";
    if (!is_type || value != "default") {
      fields.fail("scales RoPE (" + in_quotes(name) + ": " +
                  value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                  "), which Gemma 2 does not do");
    }
  }
}

double rope_theta_of(const JsonFields& fields) {
  if (fields.has("rope_scaling")) check_rope_type(fields.member("rope_scaling"), fields);
  if (fields.has("rope_parameters")) {
    const nlohmann::json& rope = fields.member("rope_parameters");
    check_rope_type(rope, fields);
    if (rope.contains("rope_theta")) return JsonFields(rope, "rope_parameters").number("rope_theta");
  }
  return fields.optional_number("rope_theta").value_or(10000.0);
}

void add_stop_tokens(const JsonFields& fields, std::vector<int>& stops) {
  if (!fields.has("eos_token_id")) return;
  const nlohmann::json& eos = fields.member("eos_token_id");
  const nlohmann::json ids = eos.is_array() ? eos : nlohmann::json::array({eos});
  for (const nlohmann::json& value : ids) {
    const int id = to_int(value).value_or(-1);
    if (id < 0) fields.fail("has an eos_token_id that is no token id");
    if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
  }
}

bool has_chat_template(const std::filesystem::path& directory) {
  if (std::filesystem::exists(directory / "chat_template.jinja")) return true;
  const std::filesystem::path path = directory / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return false;
  const nlohmann::json json = read_json_file(path);
  const auto chat_template = json.find("chat_template");
  return chat_template != json.end() && !chat_template->is_null();
}

}  // namespace

nlohmann::json read_json_file(const std::filesystem::path& path) {
  return parse_json_object(read_small_file(path, kMaxJsonBytes), in_quotes(path.native()));
}

Config config_from_hf(const nlohmann::json& json, const std::string& where) {
  const JsonFields fields(json, where);
  const std::string type = fields.text("model_type");
  if (type != "gemma2") refuse_model(type, fields);
  check_features(fields);

  // What transformers leaves out when it has the usual value; a soft cap that is there but null means none.
  nlohmann::json complete = json;
  complete["rope_theta"] = rope_theta_of(fields);
  const nlohmann::json usual = {{"attn_logit_softcapping", 50.0}, {"final_logit_softcapping", 30.0}};
  for (const auto& [name, value] : usual.items()) {
    if (!json.contains(name)) complete[name] = value;
  }
  if (!fields.has("rms_norm_eps")) complete["rms_norm_eps"] = 1e-6;
  if (!fields.has("tie_word_embeddings")) complete["tie_word_embeddings"] = true;
  if (!fields.has("layer_types")) {
    const int layers = fields.integer("num_hidden_layers");
    Config alternating;
    if (layers > 0 && layers <= 1024) alternating.layers = alternating_layers(layers);
    complete["layer_types"] = config_to_json(alternating)["layer_types"];
  }
  return config_from_json(complete, where);
}

GenerationDefaults read_generation_defaults(const std::filesystem::path& directory, const nlohmann::json& config_json) {
  GenerationDefaults defaults;
  const std::filesystem::path path = directory / "generation_config.json";
  if (std::filesystem::exists(path)) {
    const nlohmann::json json = read_json_file(path);
    const JsonFields fields(json, in_quotes(path.native()));
    add_stop_tokens(fields, defaults.stop_tokens);
    if (const auto temperature = fields.optional_number("temperature"))
      defaults.temperature = static_cast<float>(*temperature);
    if (const auto top_p = fields.optional_number("top_p")) defaults.top_p = static_cast<float>(*top_p);
    defaults.top_k = fields.optional_integer("top_k");
    // An explicit wish for greedy decoding; many models leave the member out without meaning it.
    if (!fields.optional_boolean("do_sample").value_or(true)) defaults.temperature = 0;
  }
  add_stop_tokens(JsonFields(config_json, "config.json"), defaults.stop_tokens);
  defaults.is_chat = has_chat_template(directory);
  return defaults;
}

}  // namespace gemma
