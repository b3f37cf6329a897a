#include "support/hf_directory.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "model/metadata.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

// To half precision the slow and obvious way, for values that are exact in it.
std::uint16_t to_f16_bits(float value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  const int mantissa = static_cast<int>(std::ldexp(fraction, 11)) - 1024;
  if (std::ldexp(1024 + mantissa, exponent - 11) != std::fabs(value) || exponent < -13 || exponent > 16) {
    throw std::runtime_error("a value of the test is not exact in f16");
  }
  return static_cast<std::uint16_t>((std::signbit(value) ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa);
}

template <typename Number>
void append(std::string& bytes, Number number) {
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

std::string to_bytes(const std::vector<float>& values, DType type) {
  std::string bytes;
  bytes.reserve(values.size() * bytes_of(type));
  for (const float value : values) {
    switch (type) {
      case DType::kBf16:
        append(bytes, to_bf16(value).bits);
        break;
      case DType::kF16:
        append(bytes, to_f16_bits(value));
        break;
      default:
        append(bytes, value);
        break;
    }
  }
  return bytes;
}

std::vector<float> to_floats(const Matrix& matrix, int first_row, int rows) {
  std::vector<float> values;
  for (int row = first_row; row < first_row + rows; ++row) {
    for (const bf16 value : matrix.row(row)) values.push_back(to_float(value));
  }
  return values;
}

class TensorCollector {
 public:
  TensorCollector(DType type, std::map<std::string, HfTensorData>& tensors) : type_(type), tensors_(tensors) {}

  void add(const std::string& name, const Matrix& matrix, int first_row, int rows) {
    add(name, {rows, matrix.columns}, to_floats(matrix, first_row, rows));
  }
  void add(const std::string& name, const Matrix& matrix) { add(name, matrix, 0, matrix.rows); }
  void add(const std::string& name, std::span<const float> norm) {
    add(name, {static_cast<std::int64_t>(norm.size())}, {norm.begin(), norm.end()});
  }

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape, const std::vector<float>& values) {
    const std::string bytes = to_bytes(values, type_);
    tensors_[name] = {{.name = name, .type = type_, .shape = std::move(shape), .bytes = bytes.size()}, bytes};
  }

  DType type_;
  std::map<std::string, HfTensorData>& tensors_;
};

}  // namespace

HfTensorData& HfDirectory::tensor(const std::string& name) {
  for (auto& [file, tensors] : weights) {
    if (const auto found = tensors.find(name); found != tensors.end()) return found->second;
  }
  throw std::runtime_error("the test's directory has no tensor " + name);
}

void HfDirectory::split() {
  const std::map<std::string, HfTensorData> all = std::exchange(weights, {}).at("model.safetensors");
  nlohmann::json map;
  for (const auto& [name, tensor] : all) {
    const std::string file = "model-0000" + std::to_string(1 + map.size() % 2) + "-of-00002.safetensors";
    weights[file][name] = tensor;
    map[name] = file;
  }
  files["model.safetensors.index.json"] = nlohmann::json{{"weight_map", map}}.dump();
}

void HfDirectory::write(const std::filesystem::path& directory) const {
  std::filesystem::create_directories(directory);
  for (const auto& [name, text] : files) std::ofstream(directory / name, std::ios::binary) << text;
  for (const auto& [name, tensors] : weights) write_safetensors(directory / name, tensors);
}

void HfDirectory::write_with_sparse_embedding(const std::filesystem::path& directory, int vocab_size) const {
  static constexpr const char* kName = "model.embed_tokens.weight";
  HfDirectory rest = *this;
  rest.split();
  TensorInfo embed = rest.tensor(kName).info;
  embed.shape[0] = vocab_size;
  embed.bytes =
      bytes_of(embed.type) * static_cast<std::uint64_t>(embed.shape[0]) * static_cast<std::uint64_t>(embed.shape[1]);
  for (auto& [file, tensors] : rest.weights) tensors.erase(kName);

  nlohmann::json config = nlohmann::json::parse(rest.files.at("config.json"));
  config["vocab_size"] = vocab_size;
  rest.files["config.json"] = config.dump();
  nlohmann::json index = nlohmann::json::parse(rest.files.at("model.safetensors.index.json"));
  index["weight_map"][kName] = "embedding.safetensors";
  rest.files["model.safetensors.index.json"] = index.dump();
  rest.write(directory);

  const std::string header = serialize_header(std::span(&embed, 1), {}, 8);
  std::ofstream(directory / "embedding.safetensors", std::ios::binary) << header;
  std::filesystem::resize_file(directory / "embedding.safetensors", header.size() + embed.bytes);
}

void write_safetensors(const std::filesystem::path& path, const std::map<std::string, HfTensorData>& tensors) {
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) infos.push_back(tensor.info);
  std::ofstream file(path, std::ios::binary);
  file << serialize_header(infos, {{"format", "pt"}}, 8);
  for (const auto& [name, tensor] : tensors) file << tensor.bytes;
  if (!file.flush()) throw std::runtime_error("the test cannot write " + path.string());
}

HfDirectory hf_directory(const Model& model, DType type) {
  const Config& config = model.config;
  HfDirectory made;
  nlohmann::json json = config_to_json(config);
  json["model_type"] = "gemma2";
  json["architectures"] = {"Gemma2ForCausalLM"};
  json["hidden_activation"] = "gelu_pytorch_tanh";
  json["eos_token_id"] = model.defaults.stop_tokens;
  made.files["config.json"] = json.dump(2);
  made.files["tokenizer.model"] = std::string(model.tokenizer);

  TensorCollector tensors(type, made.weights["model.safetensors"]);
  tensors.add("model.embed_tokens.weight", model.weights.embed);
  tensors.add("model.norm.weight", model.weights.final_norm);
  if (!config.is_embedding_tied) tensors.add("lm_head.weight", model.weights.head);
  for (int i = 0; i < config.layer_count(); ++i) {
    const LayerWeights& layer = model.weights.layers[static_cast<std::size_t>(i)];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    tensors.add(prefix + "input_layernorm.weight", layer.attention_norm);
    tensors.add(prefix + "self_attn.q_proj.weight", layer.qkv, 0, config.query_size());
    tensors.add(prefix + "self_attn.k_proj.weight", layer.qkv, config.query_size(), config.kv_size());
    tensors.add(prefix + "self_attn.v_proj.weight", layer.qkv, config.query_size() + config.kv_size(),
                config.kv_size());
    tensors.add(prefix + "self_attn.o_proj.weight", layer.attention_out);
    tensors.add(prefix + "post_attention_layernorm.weight", layer.attention_post_norm);
    tensors.add(prefix + "pre_feedforward_layernorm.weight", layer.mlp_norm);
    tensors.add(prefix + "mlp.gate_proj.weight", layer.gate_up, 0, config.intermediate_size);
    tensors.add(prefix + "mlp.up_proj.weight", layer.gate_up, config.intermediate_size, config.intermediate_size);
    tensors.add(prefix + "mlp.down_proj.weight", layer.down);
    tensors.add(prefix + "post_feedforward_layernorm.weight", layer.mlp_post_norm);
  }
  return made;
}

Model exact_model(const Config& config, std::string_view tokenizer) {
  struct Storage {
    std::vector<std::vector<bf16>> matrices;
    std::vector<std::vector<float>> norms;
    std::string tokenizer;
  };
  auto storage = std::make_shared<Storage>();
  struct Filler {
    Storage& storage;
    std::uint32_t state = 1;

    float next() {
      state = state * 1664525 + 1013904223;
      return static_cast<float>(static_cast<int>(state >> 24) - 128) / 128;
    }
    void operator()(const std::string&, Matrix& matrix, int rows, int columns) {
      std::vector<bf16>& values = storage.matrices.emplace_back();
      for (int i = 0; i < rows * columns; ++i) values.push_back(to_bf16(next()));
      matrix = {.rows = rows, .columns = columns, .data = values.data()};
    }
    void operator()(const std::string&, std::span<const float>& norm, int size) {
      std::vector<float>& values = storage.norms.emplace_back();
      for (int i = 0; i < size; ++i) values.push_back(next());
      norm = values;
    }
  };
  Model model;
  model.config = config;
  model.defaults.stop_tokens = {1, 6};
  visit_weights(config, model.weights, Filler{*storage});
  storage->tokenizer = tokenizer;
  model.tokenizer = storage->tokenizer;
  model.storage = storage;
  return model;
}

}  // namespace gemma
