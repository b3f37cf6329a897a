#include "device/cuda_support.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

namespace gemma {
namespace {

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB", bytes / 1e9);
  return text;
}

/// The longest context that fits: pages alone give way, and work space not at all, so that it does fit.
/// @return 0 if none does that still fills the window and what is planned for each of many sequences.
int context_that_fits(const Model& model, const KvLayout& kv, const GpuMemory& memory) {
  constexpr std::size_t kShortest = 4096;
  const std::size_t head = head_bytes(kv.type, model.config.head_dim);
  const std::size_t position = 2 * static_cast<std::size_t>(model.config.kv_heads) * head *
                               static_cast<std::size_t>(model.config.global_layer_count());
  if (position == 0) return 0;
  const std::size_t page = position * kPagePositions;
  const std::size_t pages = (memory.needed() - memory.available + page - 1) / page;
  const auto context = static_cast<std::size_t>(kv.context) / kPagePositions * kPagePositions;
  const std::size_t shortest = std::max(kShortest, static_cast<std::size_t>(kv.window));
  const std::size_t left = context - std::min(context, pages * kPagePositions);
  return left >= shortest ? static_cast<int>(left) : 0;
}

double bits_of(WeightType type) { return type == WeightType::kBf16 ? 16 : type == WeightType::kQ8 ? 8.5 : 4.625; }

/// Weights in fewer bits, where they are most of what is needed: "weights made with gemma-convert --type q8 (...)".
std::string smaller_weights(const Model& model, const GpuMemory& memory) {
  const WeightType type = model.weights.types().layers;
  if (type == WeightType::kQ4 || memory.weights < memory.needed() / 2) return {};
  const auto embedding = static_cast<double>(model.weights.embed.bytes());
  const auto layers = static_cast<double>(memory.weights) - embedding;
  const auto size_in = [&](WeightType smaller) {
    const double in_embedding = bits_of(WeightType::kQ8) / bits_of(model.weights.types().embed);
    return " (" + gigabytes(layers * bits_of(smaller) / bits_of(type) + embedding * std::min(1.0, in_embedding)) + ")";
  };
  const std::string q4 = "q4" + size_in(WeightType::kQ4);
  return "weights made with gemma-convert --type " +
         (type == WeightType::kQ8 ? q4 : "q8" + size_in(WeightType::kQ8) + " or " + q4);
}

/// What no element of a normalised row is larger than, whatever the row.
double largest_normalised(const Model& model) {
  double largest = 0;  // of what norms multiply by
  const auto see = [&](std::span<const float> norm) {
    for (float weight : norm) largest = std::max(largest, std::abs(1.0 + weight));
  };
  for (const LayerWeights& layer : model.weights.layers) {
    see(layer.attention_norm);
    see(layer.mlp_norm);
  }
  see(model.weights.final_norm);
  return largest * std::sqrt(model.config.hidden_size);
}

}  // namespace

std::string why_not_on_cuda(const Model& model, KvType cache) {
  const Config& config = model.config;
  struct Width {
    const char* name;
    int columns;
  };
  for (const auto& [name, columns] :
       {Width{"the hidden size", config.hidden_size}, Width{"the intermediate size", config.intermediate_size},
        Width{"heads times head size", config.query_size()}}) {
    if (columns % 32 != 0) return std::string(name) + " is " + std::to_string(columns) + ", not a multiple of 32";
  }
  const WeightTypes types = model.weights.types();
  const bool is_usual_q4 = types == WeightTypes{.layers = WeightType::kQ4, .embed = WeightType::kQ8};
  if (types.embed != types.layers && !is_usual_q4) {
    const std::string layers(name_of(types.layers));
    return "its layers are in " + layers + " and its embedding in " + std::string(name_of(types.embed)) +
           ", for which it has no kernels (gemma-convert --type " + layers +
           " without --embed-type makes a file that " + "it can run)";
  }
  // Of packed weights, products of normalised rows take them in float16 (kernels/decode_digits.cuh).
  constexpr int kMostNormalised = 65504;
  if (types.layers != WeightType::kBf16 && largest_normalised(model) > kMostNormalised) {
    return "its norms may give numbers of more than " + std::to_string(kMostNormalised) +
           ", too large for what it does with quantised weights (a file in bf16 it can run)";
  }
  if (cache == KvType::kF32) return "it keeps its cache in bf16 or q8, not in f32 (leave out --kv-type)";
  return {};
}

std::string explain_out_of_memory(const Model& model, const KvLayout& kv, const GpuMemory& memory) {
  const auto in_gigabytes = [](std::size_t bytes) { return gigabytes(static_cast<double>(bytes)); };
  std::vector<std::string> ways;
  const int context = context_that_fits(model, kv, memory);
  ways.push_back(context > 0 ? "--context " + std::to_string(context) + " (which fits)" : "a shorter --context");
  ways.emplace_back("a smaller --chunk");
  if (kv.rings > 1) ways.emplace_back("fewer at once with --parallel");
  if (kv.type != KvType::kQ8) {
    const auto head = static_cast<double>(head_bytes(kv.type, model.config.head_dim));
    const double share = static_cast<double>(head_bytes(KvType::kQ8, model.config.head_dim)) / head;
    ways.push_back("--kv-type q8 (a cache of " + gigabytes(static_cast<double>(memory.cache) * share) + ")");
  }
  if (std::string weights = smaller_weights(model, memory); !weights.empty()) ways.push_back(std::move(weights));

  std::string text = "the GPU has " + in_gigabytes(memory.available) + " of its " + in_gigabytes(memory.total) +
                     " free, but " + in_gigabytes(memory.needed()) + " are needed: " + in_gigabytes(memory.weights) +
                     " for weights, " + in_gigabytes(memory.cache) + " for the cache of " + std::to_string(kv.rings) +
                     " x " + std::to_string(kv.context) + " positions, " + in_gigabytes(memory.work) +
                     " of work space. Ask for ";
  for (const std::string& way : ways) text += way + ", ";
  return text + "or --device cpu";
}

}  // namespace gemma
