#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numbers>
#include <thread>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "model/model_file.h"
#include "model/weight_layout.h"

namespace gemma {
namespace {

// Zeroed memory of its own pages; huge ones where the system has them, which matters at gigabytes.
std::shared_ptr<std::byte> allocate_pages(std::size_t bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    throw Error("there is no memory for random weights of " + std::to_string(bytes >> 20) + " MiB");
  }
  ::madvise(address, bytes, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(address), [bytes](std::byte* pages) { ::munmap(pages, bytes); }};
}

std::uint64_t mix(std::uint64_t value) {  // SplitMix64, Steele et al. (2014)
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// The index-th number of a stream of standard normal ones: Box and Muller (1958).
float normal(std::uint64_t stream, std::uint64_t index) {
  const std::uint64_t bits = mix(stream + mix(index));
  const double radius = std::sqrt(-2 * std::log((static_cast<double>(bits >> 32) + 0.5) * 0x1p-32));
  return static_cast<float>(radius *
                            std::cos(2 * std::numbers::pi * static_cast<double>(bits & 0xffffffffu) * 0x1p-32));
}

// Calls work(begin, end) on parts of [0, size) at once, cut at multiples of `grain`.
template <typename Work>
void for_parts(std::size_t size, std::size_t grain, const Work& work) {
  const std::size_t parts = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 1 + size / grain);
  const std::size_t step = (size / parts / grain + 1) * grain;
  std::vector<std::jthread> threads;
  for (std::size_t begin = step; begin < size; begin += step) {
    threads.emplace_back([&work, begin, end = std::min(size, begin + step)] { work(begin, end); });
  }
  work(0, std::min(size, step));
}

// A prime, so that the rows of no matrix are alike.
constexpr std::size_t kPattern = 65'521;

// Fills and views each weight that is visited, one after the other.
struct Filler {
  std::byte* next;
  std::uint64_t stream;
  bool is_cheap;

  void operator()(const std::string&, Matrix& matrix, int rows, int columns) {
    bf16* const data = reinterpret_cast<bf16*>(
        take(std::uint64_t{2} * static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns)));
    matrix = {.type = WeightType::kBf16, .rows = rows, .columns = columns, .data = data};
    const std::size_t size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
    const float deviation = 1 / std::sqrt(static_cast<float>(columns));
    auto fill = [deviation, data, seed = stream](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) data[i] = to_bf16(deviation * normal(seed, i));
    };
    if (!is_cheap || size <= kPattern) return for_parts(size, kPattern, fill);
    fill(0, kPattern);
    for_parts(size - kPattern, kPattern, [data](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; i += kPattern) {
        std::memcpy(data + kPattern + i, data, std::min(kPattern, end - i) * sizeof(bf16));
      }
    });
  }

  void operator()(const std::string&, std::span<const float>& norm, int size) {
    const std::span<float> values(reinterpret_cast<float*>(take(std::uint64_t{4} * static_cast<std::uint64_t>(size))),
                                  static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.1f * normal(stream, i);
    norm = values;
  }

  std::byte* take(std::uint64_t bytes) {
    stream = mix(stream);
    return std::exchange(next, next + (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment);
  }
};

}  // namespace

Model random_model(const Config& config, std::uint64_t seed, bool cheap) {
  config.validate();
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : model_file_tensors(config, WeightType::kBf16, 0)) bytes += tensor.bytes;
  const std::shared_ptr<std::byte> pages = allocate_pages(static_cast<std::size_t>(bytes));

  Model model;
  model.config = config;
  model.defaults.stop_tokens = {std::min(1, config.vocab_size - 1)};
  visit_weights(config, model.weights, Filler{pages.get(), mix(seed), cheap});
  model.name = "random weights" + (config.name.empty() ? "" : " of the shape " + config.name);
  model.identity = mix(seed + 1);
  model.storage = pages;
  return model;
}

}  // namespace gemma
