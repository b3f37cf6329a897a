#include "model/convert.h"

#include <algorithm>
#include <deque>
#include <future>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "model/convert_source.h"
#include "model/encode.h"
#include "model/matrix_parts.h"
#include "model/model_writer.h"
#include "model/quantise.h"
#include "model/quote.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

constexpr std::int64_t kBlockElements = std::int64_t{1} << 20;  // 4 MiB of float32; one block for each core at once

constexpr unsigned kMostBlocksAhead = 65;  // which keeps memory below 1 GiB on any machine

// Whole rows of one source tensor, the unit in which weights stream through memory.
struct Block {
  std::string weight;  // of the .gemma file
  const HfTensor* source = nullptr;
  std::optional<WeightType> type;     // nullopt: float32, for norms
  std::span<const float> importance;  // [columns], or empty
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

// What a block adds to tensors of the .gemma file.
using Encoded = std::vector<std::pair<std::string, std::vector<std::byte>>>;

// Collects the blocks of each weight that is visited, checking that its sources are as the configuration says.
struct Planner {
  const ConvertSource& source;
  const ConvertOptions& options;
  std::vector<Block>& blocks;
  std::set<std::string>& used;

  void operator()(const std::string& weight, const Matrix&, int rows, int columns) const {
    for (const SourcePart& part : source.parts_of(weight, rows)) {
      add(weight, find(part.tensor, {part.rows, columns}), type_of(weight, options.types));
    }
  }
  void operator()(const std::string& weight, std::span<const float>, int size) const {
    add(weight, find(source.parts_of(weight, size).front().tensor, {size}), std::nullopt);
  }

  const HfTensor& find(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const auto found = source.tensors.find(name);
    if (found == source.tensors.end()) {
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

  void add(const std::string& weight, const HfTensor& tensor, std::optional<WeightType> type) const {
    const std::int64_t rows = tensor.info.shape.front();
    const std::int64_t columns = tensor.info.shape.size() == 2 ? tensor.info.shape.back() : 1;
    const std::int64_t step = std::max<std::int64_t>(1, kBlockElements / columns);
    const auto known = options.importance.find(weight);
    std::span<const float> importance;
    if (known != options.importance.end()) importance = known->second;
    for (std::int64_t row = 0; row < rows; row += step) {
      blocks.push_back({weight, &tensor, type, importance, row, std::min(step, rows - row), columns});
    }
  }
};

std::vector<Block> plan(const ConvertSource& source, const ConvertOptions& options) {
  std::vector<Block> blocks;
  std::set<std::string> used;
  Weights weights;
  visit_weights(source.config, weights, Planner{source, options, blocks, used});
  for (const auto& [name, tensor] : source.tensors) {
    // Old versions of transformers saved this table, which anyone can compute.
    if (used.contains(name) || name.ends_with(".rotary_emb.inv_freq")) continue;
    const bool is_head = name == "lm_head.weight";
    throw Error(in_quotes(tensor.file->name()) + " has a tensor " + in_quotes(name) + " that " +
                (is_head ? "config.json does not ask for: it says that the embedding is the head (tie_word_embeddings)"
                         : "Gemma 2 with this config.json does not have"));
  }
  return blocks;
}

// Changes the type of a block's numbers.
Encoded encode(const Block& block, std::span<const std::byte> bytes) {
  const DType from = block.source->info.type;
  if (!block.type) return {{block.weight, gemma::encode(bytes, from, DType::kF32)}};
  if (*block.type == WeightType::kBf16) return {{block.weight, gemma::encode(bytes, from, DType::kBf16)}};

  const std::vector<std::byte> floats = gemma::encode(bytes, from, DType::kF32);
  const int columns = static_cast<int>(block.columns);
  std::vector<std::vector<std::byte>> parts =
      quantise(*block.type, {reinterpret_cast<const float*>(floats.data()), floats.size() / sizeof(float)}, columns,
               block.importance);
  Encoded encoded;
  for (const MatrixPart& part : parts_of(*block.type, static_cast<int>(block.rows), columns)) {
    encoded.emplace_back(block.weight + std::string(part.suffix), std::move(parts[encoded.size()]));
  }
  return encoded;
}

// Reads a block and encodes it. Runs on other threads.
Encoded prepare(const Block& block) {
  const TensorInfo& info = block.source->info;
  const std::size_t count = static_cast<std::size_t>(block.rows * block.columns);
  const std::uint64_t first = static_cast<std::uint64_t>(block.first_row * block.columns);
  std::vector<std::byte> source(count * bytes_of(info.type));
  block.source->file->read(info.offset + first * bytes_of(info.type), source);
  try {
    return encode(block, source);
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

void check_output(const ConvertOptions& options, const ConvertSource& source) {
  for (const std::filesystem::path& input : source.files) {
    std::error_code missing;  // either file may be; then they are not the same
    if (std::filesystem::equivalent(input, options.output, missing)) {
      throw Error("the output " + in_quotes(options.output.native()) + " is a file of the source. Choose another name");
    }
  }
}

Conversion convert_source(const ConvertOptions& options) {
  const ConvertSource source = ConvertSource::open(options.source);
  check_output(options, source);
  Metadata metadata;
  metadata.types = options.types;
  metadata.config = source.config;
  metadata.config.name = options.output.stem().string();
  metadata.defaults = source.defaults;
  if (options.is_chat) metadata.defaults.is_chat = *options.is_chat;
  const std::vector<Block> blocks = plan(source, options);

  ModelFileWriter writer(options.output, metadata, source.tokenizer.size());
  const std::size_t most_ahead = std::clamp(1 + std::thread::hardware_concurrency(), 3u, kMostBlocksAhead);
  std::deque<std::future<Encoded>> ahead;
  std::uint64_t done = 0;
  for (std::size_t first = 0; first < blocks.size(); ++first) {
    for (std::size_t next = first + ahead.size(); next < blocks.size() && ahead.size() < most_ahead; ++next) {
      ahead.push_back(std::async(std::launch::async, prepare, blocks[next]));
    }
    const Encoded encoded = ahead.front().get();
    ahead.pop_front();
    for (const auto& [tensor, bytes] : encoded) {
      writer.append(tensor, bytes);
      done += bytes.size();
    }
    if (options.progress && !options.progress(done, writer.size())) throw Error("the conversion was interrupted");
  }
  writer.append("tokenizer", std::as_bytes(std::span(source.tokenizer)));
  writer.finish();
  return {metadata.config, metadata.defaults, writer.size()};
}

}  // namespace

Conversion convert(const ConvertOptions& options) {
  try {
    return convert_source(options);
  } catch (const std::filesystem::filesystem_error& error) {  // a folder that may not be searched, for example
    throw Error("cannot read " + in_quotes(error.path1().native()) + ": " + error.code().message());
  }
}

}  // namespace gemma
