#include "runtime/calibrate.h"

#include <algorithm>
#include <memory>

#include "device/device.h"
#include "gemma/error.h"
#include "model/weight_layout.h"
#include "runtime/kv_cache.h"
#include "runtime/transformer.h"

namespace gemma {
namespace {

constexpr int kWindow = 1024;          // tokens that are read as one text
constexpr std::size_t kFewest = 1024;  // tokens of which the means are worth anything
// Rows that are read at once. Each has sums of its own, so that no thread's sums depend on when another adds to them.
constexpr int kRows = 32;

// Sums of squares of the inputs of one matrix.
class SquareSums {
 public:
  SquareSums(std::string name, int columns)
      : name_(std::move(name)), columns_(static_cast<std::size_t>(columns)), sums_(kRows * columns_) {}

  void add(int row, std::span<const float> input) {
    double* const sums = sums_.data() + static_cast<std::size_t>(row) * columns_;
    for (std::size_t i = 0; i < columns_; ++i) sums[i] += double{input[i]} * input[i];
  }

  std::vector<float> means(std::size_t count) const {
    std::vector<float> means;
    for (std::size_t i = 0; i < columns_; ++i) {
      double sum = 0;
      for (std::size_t row = 0; row < kRows; ++row) sum += sums_[row * columns_ + i];
      means.push_back(static_cast<float>(sum / static_cast<double>(count)));
    }
    return means;
  }

  const std::string& name() const { return name_; }

 private:
  std::string name_;
  std::size_t columns_;
  std::vector<double> sums_;  // [kRows, columns]
};

// By the matrix that they are the inputs of, which is told by where its weights lie.
using SumsOfMatrices = std::map<const bf16*, SquareSums>;

SumsOfMatrices make_sums(const Model& model) {
  struct Maker {
    SumsOfMatrices& sums;
    void operator()(const std::string& name, const Matrix& matrix, int, int columns) const {
      if (name.starts_with("layers.")) sums.try_emplace(matrix.data, name, columns);
    }
    void operator()(const std::string&, std::span<const float>, int) const {}
  };
  SumsOfMatrices sums;
  Weights weights = model.weights;
  visit_weights(model.config, weights, Maker{sums});
  return sums;
}

// One step of the forward pass without any logits.
void read(const Config& config, Device& device, KvCache& cache, KvCache::Id id, std::span<const int> tokens) {
  Batch batch;
  batch.sequences.push_back(cache.extend(id, static_cast<int>(tokens.size())));
  for (const int token : tokens) {
    const int position = batch.sequences[0].position + static_cast<int>(batch.rows.size());
    batch.rows.push_back({.token = token, .position = position});
  }
  forward(config, device, batch);
}

}  // namespace

std::map<std::string, std::vector<float>> calibrate(const Model& model, std::span<const int> tokens, int bos,
                                                    int threads,
                                                    const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  if (model.weights.types() != WeightTypes{}) throw Error("only a model in bf16 can be calibrated");
  if (tokens.size() < kFewest) {
    throw Error("the text to calibrate on has " + std::to_string(tokens.size()) + " tokens, which tell too little. " +
                "Give one of " + std::to_string(kFewest) + " at least; a hundred times as many are better");
  }
  SumsOfMatrices sums = make_sums(model);
  const int window = std::min(kWindow, model.config.context);
  CpuOptions options;
  options.threads = threads;
  options.max_rows = kRows;
  options.kv = plan_kv_cache(model.config.window, window, 1, KvType::kF32);
  options.observe_input = [&sums](const Matrix& matrix, int row, std::span<const float> input) {
    const auto found = sums.find(matrix.data);
    if (found != sums.end()) found->second.add(row, input);
  };
  const std::unique_ptr<Device> device = make_cpu_device(model, options);
  KvCache cache(*device);

  std::size_t rows = 0;
  for (std::size_t first = 0; first < tokens.size();) {
    const std::size_t count = std::min(tokens.size() - first, static_cast<std::size_t>(window - 1));
    std::vector<int> text = {bos};
    text.insert(text.end(), tokens.begin() + static_cast<std::ptrdiff_t>(first),
                tokens.begin() + static_cast<std::ptrdiff_t>(first + count));
    const KvCache::Id id = cache.create(window);
    for (std::size_t i = 0; i < text.size(); i += kRows) {
      read(model.config, *device, cache, id, std::span(text).subspan(i, std::min<std::size_t>(kRows, text.size() - i)));
      if (progress && !progress(std::min(tokens.size(), first + i), tokens.size())) {
        throw Error("the calibration was interrupted");
      }
    }
    cache.remove(id);
    rows += text.size();
    first += count;
  }
  std::map<std::string, std::vector<float>> importance;
  for (const auto& [matrix, of_matrix] : sums) importance.emplace(of_matrix.name(), of_matrix.means(rows));
  return importance;
}

}  // namespace gemma
