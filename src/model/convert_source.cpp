#include "model/convert_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "gemma/error.h"
#include "gemma/tokenizer.h"
#include "model/hf_config.h"
#include "model/input_file.h"
#include "model/mapped_file.h"
#include "model/metadata.h"
#include "model/model_file.h"
#include "model/quote.h"

namespace gemma {
namespace {

constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{256} << 20;

void check_directory(const std::filesystem::path& source) {
  const std::string name = in_quotes(source.native());
  if (std::filesystem::exists(source / "config.json")) return;
  if (std::filesystem::exists(source / "adapter_config.json")) {
    throw Error(name + " holds a LoRA adapter, not a model. Merge it into its base model first");
  }
  throw Error(name + " has no config.json. Give the Hugging Face directory of a Gemma 2 model");
}

std::string read_tokenizer(const std::filesystem::path& source) {
  const std::filesystem::path path = source / "tokenizer.model";
  if (!std::filesystem::exists(path)) {
    throw Error(in_quotes(source.native()) +
                " has no tokenizer.model. It is the same for all Gemma 2 models: copy it from the " +
                "model that this one was made from");
  }
  return read_small_file(path, kMaxTokenizerBytes);
}

// Both <eos> and <end_of_turn> end an answer, whether or not the source says so.
void add_stop_tokens(const Tokenizer& tokenizer, std::vector<int>& stops) {
  for (const int token : {tokenizer.eos(), tokenizer.end_of_turn()}) {
    if (token >= 0 && std::find(stops.begin(), stops.end(), token) == stops.end()) stops.push_back(token);
  }
}

// Where a weight comes from in a Hugging Face directory.
std::vector<SourcePart> hf_parts_of(const std::string& weight, int rows, const Config& config) {
  if (weight == "embed") return {{"model.embed_tokens.weight", rows}};
  if (weight == "final_norm") return {{"model.norm.weight", rows}};
  if (weight == "head") return {{"lm_head.weight", rows}};
  const std::size_t layer_end = weight.find('.', std::string("layers.").size());
  const std::string layer = "model." + weight.substr(0, layer_end + 1);
  const std::string step = weight.substr(layer_end + 1);
  if (step == "attn.norm") return {{layer + "input_layernorm.weight", rows}};
  if (step == "attn.qkv") {
    return {{layer + "self_attn.q_proj.weight", config.query_size()},
            {layer + "self_attn.k_proj.weight", config.kv_size()},
            {layer + "self_attn.v_proj.weight", config.kv_size()}};
  }
  if (step == "attn.out") return {{layer + "self_attn.o_proj.weight", rows}};
  if (step == "attn.post_norm") return {{layer + "post_attention_layernorm.weight", rows}};
  if (step == "mlp.norm") return {{layer + "pre_feedforward_layernorm.weight", rows}};
  if (step == "mlp.gate_up") {
    return {{layer + "mlp.gate_proj.weight", config.intermediate_size},
            {layer + "mlp.up_proj.weight", config.intermediate_size}};
  }
  if (step == "mlp.down") return {{layer + "mlp.down_proj.weight", rows}};
  return {{layer + "post_feedforward_layernorm.weight", rows}};
}

ConvertSource open_directory(const std::filesystem::path& path) {
  check_directory(path);
  const std::filesystem::path config_path = path / "config.json";
  const nlohmann::json config_json = read_json_file(config_path);

  ConvertSource source;
  source.config = config_from_hf(config_json, in_quotes(config_path.native()));
  source.defaults = read_generation_defaults(path, config_json);
  source.tokenizer = read_tokenizer(path);
  const Tokenizer tokenizer(source.tokenizer);
  if (tokenizer.size() > source.config.vocab_size) {
    throw Error("tokenizer.model has " + std::to_string(tokenizer.size()) +
                " pieces, but config.json has a vocab_size of " + std::to_string(source.config.vocab_size) +
                ". They belong to different models");
  }
  add_stop_tokens(tokenizer, source.defaults.stop_tokens);
  validate(source.defaults, source.config);

  const HfCheckpoint checkpoint(path);
  source.tensors = checkpoint.tensors();
  source.files = checkpoint.files();
  for (const char* name : {"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.model",
                           "chat_template.jinja", "model.safetensors.index.json"}) {
    source.files.push_back(path / name);
  }
  return source;
}

ConvertSource open_model_file(const std::filesystem::path& path) {
  const auto file = std::make_shared<const InputFile>(path);
  if (file->starts_with("GGUF")) {
    throw Error(in_quotes(path.native()) +
                " is a GGUF file. Give the Hugging Face directory that holds config.json and the weights");
  }
  const Model model = load_model(path);
  const WeightTypes types = model.weights.types();
  if (types != WeightTypes{}) {
    throw Error(in_quotes(path.native()) + " is quantised already (" + std::string(name_of(types.layers)) +
                "). Convert from the Hugging Face directory or from a .gemma file in bf16");
  }
  ConvertSource source;
  source.config = model.config;
  source.defaults = model.defaults;
  source.tokenizer = model.tokenizer;
  source.files = {path};
  source.is_model_file = true;
  const MappedFile mapped(path);
  SafetensorsHeader header = SafetensorsHeader::parse(mapped.bytes(), mapped.bytes().size(), path.string());
  for (TensorInfo& info : header.tensors) {
    if (info.name == "tokenizer" || info.name.ends_with(kPadSuffix)) continue;
    const std::string name = info.name;
    source.tensors.emplace(name, HfTensor{std::move(info), file});
  }
  return source;
}

}  // namespace

ConvertSource ConvertSource::open(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw Error("there is no directory or file " + in_quotes(path.native()));
  return std::filesystem::is_directory(path) ? open_directory(path) : open_model_file(path);
}

std::vector<SourcePart> ConvertSource::parts_of(const std::string& weight, int rows) const {
  if (is_model_file) return {{weight, rows}};
  return hf_parts_of(weight, rows, config);
}

}  // namespace gemma
