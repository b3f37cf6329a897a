#include "model/metadata.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "gemma/error.h"
#include "model/hash.h"
#include "model/json_fields.h"
#include "model/model_file.h"
#include "model/quote.h"

namespace gemma {
namespace {

constexpr const char* kLocalName = "sliding_attention";
constexpr const char* kGlobalName = "full_attention";

// The shortest number that reads back as the same float: 0.7, not 0.699999988079071.
nlohmann::json shortest(float value) {
  char text[32];
  const auto result = std::to_chars(text, text + sizeof text, value);
  return nlohmann::json::parse(text, result.ptr);
}

nlohmann::json shortest(const std::optional<float>& value) { return value ? shortest(*value) : nlohmann::json(); }

std::optional<float> to_float(std::optional<double> value) {
  return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
}

GenerationDefaults defaults_from_json(const nlohmann::json& json) {
  const std::string where = "its list of generation defaults";
  if (!json.is_object()) throw Error(where + " is not an object");
  const JsonFields fields(json, where);
  GenerationDefaults defaults;
  const nlohmann::json& stops = fields.member("stop_tokens");
  if (!stops.is_array()) fields.fail("has stop_tokens that are not a list");
  for (const nlohmann::json& stop : stops) {
    // What is no id becomes one that validate refuses.
    defaults.stop_tokens.push_back(to_int(stop).value_or(-1));
  }
  defaults.temperature = to_float(fields.optional_number("temperature"));
  defaults.top_k = fields.optional_integer("top_k");
  defaults.top_p = to_float(fields.optional_number("top_p"));
  defaults.is_chat = fields.boolean("chat");
  return defaults;
}

}  // namespace

nlohmann::json config_to_json(const Config& config) {
  nlohmann::json layer_types = nlohmann::json::array();
  for (const LayerKind kind : config.layers)
    layer_types.push_back(kind == LayerKind::kLocal ? kLocalName : kGlobalName);
  return {
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv_heads},
      {"head_dim", config.head_dim},
      {"vocab_size", config.vocab_size},
      {"sliding_window", config.window},
      {"max_position_embeddings", config.context},
      {"rope_theta", config.rope_theta},
      {"rms_norm_eps", config.rms_norm_eps},
      {"query_pre_attn_scalar", config.query_pre_attn_scalar},
      {"attn_logit_softcapping", shortest(config.attention_softcap)},
      {"final_logit_softcapping", shortest(config.final_softcap)},
      {"tie_word_embeddings", config.is_embedding_tied},
      {"num_hidden_layers", config.layer_count()},
      {"layer_types", layer_types},
  };
}

Config config_from_json(const nlohmann::json& json, const std::string& where) {
  const JsonFields fields(json, where);
  Config config;
  config.hidden_size = fields.integer("hidden_size");
  config.intermediate_size = fields.integer("intermediate_size");
  config.heads = fields.integer("num_attention_heads");
  config.kv_heads = fields.integer("num_key_value_heads");
  config.head_dim = fields.integer("head_dim");
  config.vocab_size = fields.integer("vocab_size");
  config.window = fields.integer("sliding_window");
  config.context = fields.integer("max_position_embeddings");
  config.rope_theta = fields.number("rope_theta");
  config.rms_norm_eps = fields.number("rms_norm_eps");
  config.query_pre_attn_scalar = fields.number("query_pre_attn_scalar");
  config.attention_softcap = to_float(fields.optional_number("attn_logit_softcapping"));
  config.final_softcap = to_float(fields.optional_number("final_logit_softcapping"));
  config.is_embedding_tied = fields.boolean("tie_word_embeddings");

  const nlohmann::json& layer_types = fields.member("layer_types");
  if (!layer_types.is_array()) fields.fail("has layer_types that are not a list");
  for (const nlohmann::json& type : layer_types) {
    if (type != kLocalName && type != kGlobalName) {
      fields.fail(std::string("has layer_types other than '") + kLocalName + "' and '" + kGlobalName +
                  "', which Gemma 2 does not have");
    }
    config.layers.push_back(type == kLocalName ? LayerKind::kLocal : LayerKind::kGlobal);
  }
  const int layers = fields.integer("num_hidden_layers");
  if (layers != config.layer_count()) {
    fields.fail("has " + std::to_string(config.layer_count()) + " layer_types, but num_hidden_layers is " +
                std::to_string(layers));
  }
  config.validate();
  return config;
}

void validate(const GenerationDefaults& defaults, const Config& config) {
  if (defaults.stop_tokens.empty()) throw Error("the model has no stop token (eos_token_id)");
  for (const int token : defaults.stop_tokens) {
    if (token < 0 || token >= config.vocab_size) {
      throw Error("a stop token (eos_token_id) is not in the vocabulary of " + std::to_string(config.vocab_size) +
                  " tokens");
    }
  }
  // Written so that NaN fails, too.
  if (defaults.temperature && !(*defaults.temperature >= 0 && *defaults.temperature <= 1e6f)) {
    throw Error("the model's temperature is not a number from 0 on");
  }
  if (defaults.top_k && *defaults.top_k < 0) throw Error("the model's top_k is negative");
  if (defaults.top_p && !(*defaults.top_p > 0 && *defaults.top_p <= 1)) {
    throw Error("the model's top_p is not above 0 and at most 1");
  }
}

std::string to_json(const Metadata& metadata) {
  const GenerationDefaults& defaults = metadata.defaults;
  nlohmann::json json = {
      {"version", kModelFileVersion},
      {"name", metadata.config.name},
      {"type", name_of(metadata.types.layers)},
      {"config", config_to_json(metadata.config)},
      {"generation",
       {{"stop_tokens", defaults.stop_tokens},
        {"temperature", shortest(defaults.temperature)},
        {"top_k", defaults.top_k ? nlohmann::json(*defaults.top_k) : nlohmann::json()},
        {"top_p", shortest(defaults.top_p)},
        {"chat", defaults.is_chat}}},
      {"hashes", metadata.hashes},
  };
  if (metadata.types.embed != metadata.types.layers) json["embed_type"] = name_of(metadata.types.embed);
  // A name may come from a directory, whose bytes need not be UTF-8.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Metadata parse_metadata(const std::string& text) {
  const std::string where = "its metadata";
  const nlohmann::json json = parse_json_object(text, where);
  const JsonFields fields(json, where);
  const int version = fields.integer("version");
  if (version != kModelFileVersion) {
    fields.fail("has the format version " + std::to_string(version) + ", but this program reads version " +
                std::to_string(kModelFileVersion));
  }

  Metadata metadata;
  metadata.types.layers = parse_weight_type(fields.text("type"));
  const std::optional<std::string> embed_type = fields.optional_text("embed_type");
  metadata.types.embed = embed_type ? parse_weight_type(*embed_type) : metadata.types.layers;
  const nlohmann::json& config = fields.member("config");
  if (!config.is_object()) fields.fail("has a 'config' that is not an object");
  metadata.config = config_from_json(config, where);
  metadata.config.name = printable(fields.text("name"));
  metadata.defaults = defaults_from_json(fields.member("generation"));
  validate(metadata.defaults, metadata.config);

  const nlohmann::json& hashes = fields.member("hashes");
  if (!hashes.is_object()) fields.fail("has 'hashes' that are not an object");
  for (const auto& [tensor, digits] : hashes.items()) {
    if (!digits.is_string() || digits.get_ref<const std::string&>().size() != kHashDigits) {
      fields.fail("has a malformed hash");
    }
    metadata.hashes[tensor] = digits.get<std::string>();
  }
  return metadata;
}

}  // namespace gemma
