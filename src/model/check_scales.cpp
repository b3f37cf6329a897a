#include "model/check_scales.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gemma/error.h"
#include "model/matrix_parts.h"
#include "model/quote.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 19;  // scales that a thread looks at before it takes the next ones

struct ScaleBlock {
  std::string tensor;
  std::span<const f16> scales;
};

struct ScaleCollector {
  std::vector<ScaleBlock>& blocks;

  void operator()(const std::string& name, const Matrix& matrix, int rows, int columns) const {
    const std::vector<MatrixPart> parts = parts_of(matrix.type, rows, columns);
    const std::vector<std::span<const std::byte>> bytes = bytes_of_parts(matrix);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].type != DType::kF16) continue;
      const std::span<const f16> all(reinterpret_cast<const f16*>(bytes[i].data()), bytes[i].size() / sizeof(f16));
      for (std::size_t first = 0; first < all.size(); first += kBlock) {
        blocks.push_back(
            {name + std::string(parts[i].suffix), all.subspan(first, std::min(kBlock, all.size() - first))});
      }
    }
  }
  void operator()(const std::string&, std::span<const float>, int) const {}
};

bool are_finite(std::span<const f16> scales) {
  constexpr unsigned kExponent = 0x7c00;  // all ones in what is infinite or not a number
  bool are = true;
  for (const f16 scale : scales) are &= (scale.bits & kExponent) != kExponent;
  return are;
}

}  // namespace

void check_scales(const Model& model) {
  std::vector<ScaleBlock> blocks;
  Weights weights = model.weights;
  visit_weights(model.config, weights, ScaleCollector{blocks});

  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> bad = blocks.size();
  const auto look = [&] {
    for (std::size_t i = next++; i < blocks.size() && bad == blocks.size(); i = next++) {
      if (!are_finite(blocks[i].scales)) bad = i;
    }
  };
  {
    std::vector<std::jthread> helpers;
    const std::size_t helper_count = std::min<std::size_t>(std::thread::hardware_concurrency(), blocks.size() / 4);
    for (std::size_t i = 1; i < helper_count; ++i) helpers.emplace_back(look);
    look();
  }
  if (bad == blocks.size()) return;
  throw Error("cannot use " + in_quotes(model.name) + ": " + blocks[bad].tensor +
              " has a scale that is infinite or not a number. The file is damaged.\n" +
              "Convert it again with: gemma-convert <hf-directory> -o <file>");
}

}  // namespace gemma
