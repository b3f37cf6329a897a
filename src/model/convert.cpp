#include "model/convert.h"

#include <algorithm>
#include <deque>
#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "gemma/tokenizer.h"
#include "model/encode.h"
#include "model/hf_checkpoint.h"
#include "model/hf_config.h"
#include "model/model_writer.h"
#include "model/quote.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{256} << 20;
constexpr std::int64_t kBlockElements = std::int64_t{4} << 20;  // 16 MiB of float32
constexpr std::size_t kBlocksAhead = 3;                         // being read and encoded while one is written

// Whole rows of one source tensor, the unit in which weights stream through memory. (Quantised types will encode a row
// in groups, which is why rows are not cut.)
struct Block {
  std::string tensor;  // of the .gemma file
  const HfTensor* source = nullptr;
  DType target = DType::kBf16;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

// A source tensor and the rows that it adds to a weight.
struct Part {
  std::string name;
  int rows;
};

// Where a weight of the .gemma file comes from: the source tensors, one below the other.
std::vector<Part> parts_of(const std::string& weight, int rows, const Config& config) {
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

// Collects the blocks of each weight that is visited, checking that its sources are as the configuration says.
struct Planner {
  const Config& config;
  const HfCheckpoint& checkpoint;
  std::vector<Block>& blocks;
  std::set<std::string>& used;

  void operator()(const std::string& weight, const Matrix&, int rows, int columns) const {
    for (const Part& part : parts_of(weight, rows, config)) add(weight, find(part.name, {part.rows, columns}), DType::kBf16);
  }
  void operator()(const std::string& weight, std::span<const float>, int size) const {
    add(weight, find(parts_of(weight, size, config).front().name, {size}), DType::kF32);
  }

  const HfTensor& find(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = checkpoint.tensors().find(name);
    if (found == checkpoint.tensors().end()) {
      throw Error("the source has no tensor " + in_quotes(name) +
                  ", which its config.json asks for. Download all of its files, or " +
                  "check that config.json belongs to them.");
    }
    const TensorInfo& info = found->second.info;
    const std::string where = "tensor " + in_quotes(name) + " in " + in_quotes(found->second.file->name());
    if (info.shape != shape) {
      throw Error(where + " has shape " + to_text(info.shape) + ", but config.json says " + to_text(shape));
    }
    if (info.type != DType::kBf16 && info.type != DType::kF16 && info.type != DType::kF32) {
      throw Error(where + " has type " + std::string(name_of(info.type)) +
                  ", but only BF16, F16 and F32 can be converted");
    }
    used.insert(name);
    return found->second;
  }

  void add(const std::string& weight, const HfTensor& source, DType target) const {
    const std::int64_t rows = source.info.shape.front();
    const std::int64_t columns = source.info.shape.size() == 2 ? source.info.shape.back() : 1;
    const std::int64_t step = std::max<std::int64_t>(1, kBlockElements / columns);
    for (std::int64_t row = 0; row < rows; row += step) {
      blocks.push_back({weight, &source, target, row, std::min(step, rows - row), columns});
    }
  }
};

std::vector<Block> plan(const Config& config, const HfCheckpoint& checkpoint) {
  std::vector<Block> blocks;
  std::set<std::string> used;
  Weights weights;
  visit_weights(config, weights, Planner{config, checkpoint, blocks, used});
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    // Old versions of transformers saved this table, which anyone can compute.
    if (used.contains(name) || name.ends_with(".rotary_emb.inv_freq")) continue;
    const bool is_head = name == "lm_head.weight";
    throw Error(in_quotes(tensor.file->name()) + " has a tensor " + in_quotes(name) + " that " +
                (is_head ? "config.json does not ask for: it says that the embedding is the head (tie_word_embeddings)"
                         : "Gemma 2 with this config.json does not have"));
  }
  return blocks;
}

// Reads a block and encodes it. Runs on other threads.
std::vector<std::byte> prepare(const Block& block) {
  const TensorInfo& info = block.source->info;
  const std::size_t count = static_cast<std::size_t>(block.rows * block.columns);
  const std::uint64_t first = static_cast<std::uint64_t>(block.first_row * block.columns);
  std::vector<std::byte> source(count * bytes_of(info.type));
  block.source->file->read(info.offset + first * bytes_of(info.type), source);
  try {
    return encode(source, info.type, block.target);
  } catch (const NotFinite& bad) {
    const std::uint64_t index = first + bad.index;
    std::vector<std::int64_t> place = {static_cast<std::int64_t>(index)};
    if (info.shape.size() == 2) {
      place = {static_cast<std::int64_t>(index) / block.columns, static_cast<std::int64_t>(index) % block.columns};
    }
    throw Error("tensor " + in_quotes(info.name) + " in " + in_quotes(block.source->file->name()) + " has " + bad.what +
                " at " + to_text(place) + ". The file is damaged, or its training went wrong.");
  }
}

void check_source(const std::filesystem::path& source) {
  const std::string name = in_quotes(source.native());
  if (!std::filesystem::exists(source)) throw Error("there is no directory " + name);
  if (!std::filesystem::is_directory(source)) {
    const bool is_gguf = std::filesystem::is_regular_file(source) && InputFile(source).starts_with("GGUF");
    throw Error(name + " is a " + (is_gguf ? "GGUF " : "") +
                "file. Give the Hugging Face directory that holds config.json and the weights");
  }
  if (std::filesystem::exists(source / "config.json")) return;
  if (std::filesystem::exists(source / "adapter_config.json")) {
    throw Error(name + " holds a LoRA adapter, not a model. Merge it into its base model first");
  }
  throw Error(name + " has no config.json. Give the Hugging Face directory of a Gemma 2 model");
}

void check_output(const ConvertOptions& options, const HfCheckpoint& checkpoint) {
  std::vector<std::filesystem::path> inputs = checkpoint.files();
  for (const char* name : {"config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.model",
                           "chat_template.jinja", "model.safetensors.index.json"}) {
    inputs.push_back(options.source / name);
  }
  for (const std::filesystem::path& input : inputs) {
    std::error_code missing;  // either file may be; then they are not the same
    if (std::filesystem::equivalent(input, options.output, missing)) {
      throw Error("the output " + in_quotes(options.output.native()) + " is a file of the source. Choose another name");
    }
  }
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

Conversion convert_directory(const ConvertOptions& options) {
  check_source(options.source);
  const std::filesystem::path config_path = options.source / "config.json";
  const nlohmann::json config_json = read_json_file(config_path);

  Metadata metadata;
  metadata.types = {options.type, options.type};
  metadata.config = config_from_hf(config_json, in_quotes(config_path.native()));
  metadata.config.name = options.output.stem().string();
  metadata.defaults = read_generation_defaults(options.source, config_json);
  if (options.is_chat) metadata.defaults.is_chat = *options.is_chat;

  const std::string tokenizer_model = read_tokenizer(options.source);
  const Tokenizer tokenizer(tokenizer_model);
  if (tokenizer.size() > metadata.config.vocab_size) {
    throw Error("tokenizer.model has " + std::to_string(tokenizer.size()) +
                " pieces, but config.json has a vocab_size of " + std::to_string(metadata.config.vocab_size) +
                ". They belong to different models");
  }
  add_stop_tokens(tokenizer, metadata.defaults.stop_tokens);
  validate(metadata.defaults, metadata.config);

  const HfCheckpoint checkpoint(options.source);
  const std::vector<Block> blocks = plan(metadata.config, checkpoint);
  check_output(options, checkpoint);

  ModelFileWriter writer(options.output, metadata, tokenizer_model.size());
  std::deque<std::future<std::vector<std::byte>>> ahead;
  std::uint64_t done = 0;
  std::size_t written = 0;
  for (std::size_t next = 0; next < blocks.size() || !ahead.empty();) {
    for (; next < blocks.size() && ahead.size() < kBlocksAhead; ++next) {
      ahead.push_back(std::async(std::launch::async, prepare, blocks[next]));
    }
    const std::vector<std::byte> bytes = ahead.front().get();
    ahead.pop_front();
    writer.append(blocks[written++].tensor, bytes);
    done += bytes.size();
    if (options.progress && !options.progress(done, writer.size())) throw Error("the conversion was interrupted");
  }
  writer.append("tokenizer", std::as_bytes(std::span(tokenizer_model)));
  writer.finish();
  return {metadata.config, metadata.defaults, writer.size()};
}

}  // namespace

Conversion convert(const ConvertOptions& options) {
  try {
    return convert_directory(options);
  } catch (const std::filesystem::filesystem_error& error) {  // a folder that may not be searched, for example
    throw Error("cannot read " + in_quotes(error.path1().native()) + ": " + error.code().message());
  }
}

}  // namespace gemma
