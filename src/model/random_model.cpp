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
#include "model/matrix_parts.h"
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

// Calls set(byte, random byte) for all bytes.
template <typename Set>
void fill_bytes(std::span<std::byte> bytes, std::uint64_t stream, const Set& set) {
  static constexpr std::size_t kWord = sizeof(std::uint64_t);
  for_parts(bytes.size(), kPattern * kWord, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; i += kWord) {
      const std::uint64_t random = mix(stream + i);
      for (std::size_t j = 0; j < std::min(kWord, end - i); ++j) {
        bytes[i + j] = set(static_cast<std::uint8_t>(random >> (8 * j)));
      }
    }
  });
}

// Fills and views each weight that is visited, one after the other.
struct Filler {
  std::byte* next;
  std::uint64_t stream;
  bool is_cheap;
  WeightTypes types;

  void operator()(const std::string& name, Matrix& matrix, int rows, int columns) {
    const WeightType type = type_of(name, types);
    std::vector<std::span<std::byte>> parts;
    std::vector<const std::byte*> starts;
    for (const MatrixPart& part : parts_of(type, rows, columns)) {
      parts.push_back(take(part.bytes()));
      starts.push_back(parts.back().data());
    }
    matrix = make_matrix(type, rows, columns, starts);
    const float deviation = 1 / std::sqrt(static_cast<float>(columns));
    switch (type) {
      case WeightType::kBf16:
        return fill_bf16(parts[0], deviation);
      case WeightType::kQ8:
        return fill_q8(parts, deviation);
      case WeightType::kQ4:
        return fill_q4(parts, deviation);
    }
  }

  void operator()(const std::string&, std::span<const float>& norm, int size) {
    const std::span<std::byte> bytes = take(std::uint64_t{4} * static_cast<std::uint64_t>(size));
    const std::span<float> values(reinterpret_cast<float*>(bytes.data()), static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.1f * normal(stream, i);
    norm = values;
  }

  void fill_bf16(std::span<std::byte> bytes, float deviation) const {
    bf16* const data = reinterpret_cast<bf16*>(bytes.data());
    const std::size_t size = bytes.size() / sizeof(bf16);
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

  // Evenly distributed codes, and scales that differ by a factor of up to two.
  void fill_q8(std::span<const std::span<std::byte>> parts, float deviation) const {
    static constexpr float kCodeDeviation = 73.5f;   // of whole numbers from -127 to 127
    static constexpr float kScaleDeviation = 1.53f;  // root mean square of numbers from 1 to 2
    fill_bytes(parts[0], stream,
               [](std::uint8_t random) { return static_cast<std::byte>(random == 0x80 ? 0x81 : random); });
    fill_halves(parts[1],
                [&](std::uint64_t i) { return deviation / (kCodeDeviation * kScaleDeviation) * (1 + unit(i)); });
  }

  // The same, with minimums that put the middle of the codes at about zero.
  void fill_q4(std::span<const std::span<std::byte>> parts, float deviation) const {
    static constexpr float kCodeDeviation = 4.61f;    // of whole numbers from 0 to 15
    static constexpr float kScaleDeviation = 194.8f;  // root mean square of whole numbers from 128 to 255
    static constexpr float kMiddle = 7.5f;            // of the codes
    const auto from_128 = [](std::uint8_t random) { return static_cast<std::byte>(random | 0x80); };
    const float d = deviation / (kCodeDeviation * kScaleDeviation);
    fill_bytes(parts[0], stream, [](std::uint8_t random) { return std::byte{random}; });
    fill_bytes(parts[1], stream + 1, from_128);
    std::copy(parts[1].begin(), parts[1].end(), parts[2].begin());
    fill_halves(parts[3], [d](std::uint64_t) { return d; });
    fill_halves(parts[4], [d](std::uint64_t) { return d * kMiddle; });
  }

  template <typename Value>
  static void fill_halves(std::span<std::byte> bytes, const Value& value) {
    f16* const data = reinterpret_cast<f16*>(bytes.data());
    for_parts(bytes.size() / sizeof(f16), kPattern, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) data[i] = to_f16(value(i));
    });
  }

  float unit(std::uint64_t index) const { return static_cast<float>(mix(stream + ~index) >> 40) * 0x1p-24f; }

  std::span<std::byte> take(std::uint64_t bytes) {
    stream = mix(stream);
    std::byte* const start =
        std::exchange(next, next + (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment);
    return {start, static_cast<std::size_t>(bytes)};
  }
};

}  // namespace

Model random_model(const Config& config, std::uint64_t seed, bool cheap, WeightTypes types) {
  config.validate();
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : model_file_tensors(config, types, 0)) bytes += tensor.bytes;
  const std::shared_ptr<std::byte> pages = allocate_pages(static_cast<std::size_t>(bytes));

  Model model;
  model.config = config;
  model.defaults.stop_tokens = {std::min(1, config.vocab_size - 1)};
  visit_weights(config, model.weights, Filler{pages.get(), mix(seed), cheap, types});
  model.name = "random weights" + (config.name.empty() ? "" : " of the shape " + config.name);
  model.identity = mix(seed + 1);
  model.storage = pages;
  return model;
}

}  // namespace gemma
