#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "model/config.h"
#include "model/model_file.h"
#include "runtime/kv_cache.h"

namespace gemma {
namespace {

using testing::HasSubstr;

constexpr const char* kShapes[] = {"2b", "9b", "27b"};

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// 9241705984 -> "9,241,705,984"
std::string grouped(std::int64_t number) {
  std::string text = std::to_string(number);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<std::size_t>(at), 1, ',');
  return text;
}

/// `amount` of a unit with `digits` decimals: "4.87"
std::string decimal(double amount, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, amount);
  return text;
}

std::string row(const std::string& first, std::initializer_list<std::string> cells) {
  std::string text = "| " + first + " |";
  for (const std::string& cell : cells) text += " " + cell + " |";
  return text + "\n";
}

constexpr double kGB = 1e9;
constexpr double kGiB = 1024.0 * 1024 * 1024;

/// What gemma-convert makes, by its option --type.
constexpr WeightTypes kFiles[] = {
    {WeightType::kBf16, WeightType::kBf16}, {WeightType::kQ8, WeightType::kQ8}, {WeightType::kQ4, WeightType::kQ8}};

constexpr std::pair<KvType, const char*> kCaches[] = {
    {KvType::kF32, "f32"}, {KvType::kBf16, "bf16"}, {KvType::kQ8, "q8"}};

double weight_bytes(const Config& config, WeightTypes types) {
  double bytes = 0;
  for (const TensorInfo& tensor : model_file_tensors(config, types, 0)) {
    if (!tensor.name.ends_with(kPadSuffix)) bytes += static_cast<double>(tensor.bytes);
  }
  return bytes;
}

double cache_gib(const Config& config, int context, KvType type) {
  return static_cast<double>(kv_bytes(config, config.window, context, type).total()) / kGiB;
}

std::string shape_row(const Config& config) {
  const auto number = [](int value) { return std::to_string(value); };
  return row(
      config.name,
      {grouped(config.embedding_parameters() + config.other_parameters()), grouped(config.embedding_parameters()),
       number(config.layer_count()), number(config.hidden_size), number(config.heads) + " / " + number(config.kv_heads),
       number(config.head_dim), number(config.intermediate_size), number(config.window), number(config.context)});
}

std::string download_row(const Config& config) {
  const double parameters = static_cast<double>(config.embedding_parameters() + config.other_parameters());
  const auto converted = [&](WeightTypes types) { return decimal(weight_bytes(config, types) / kGB, 1) + " GB"; };
  return row(config.name, {decimal(4 * parameters / kGB, 1) + " GB", decimal(2 * parameters / kGB, 1) + " GB",
                           converted(kFiles[0]), converted(kFiles[1]), converted(kFiles[2])});
}

std::string cache_row(const Config& config, KvType type, const char* name) {
  const KvBytes full = kv_bytes(config, config.window, config.context, type);
  return row(config.name + ", " + name,
             {decimal(cache_gib(config, 1024, type), 2), decimal(cache_gib(config, 4096, type), 2),
              decimal(cache_gib(config, 8192, type), 2), decimal(static_cast<double>(full.local) / kGiB, 2),
              decimal(static_cast<double>(full.global) / kGiB, 2),
              decimal(static_cast<double>(full.without_window) / kGiB, 2)});
}

std::string memory_row(const Config& config, WeightTypes types) {
  const double weights = weight_bytes(config, types) / kGiB;
  const auto with_cache = [&](int context, KvType type) {
    return decimal(weights + cache_gib(config, context, type), 1);
  };
  return row(config.name + ", " + std::string(name_of(types.layers)),
             {decimal(weights, 1), with_cache(1024, KvType::kF32), with_cache(8192, KvType::kF32),
              with_cache(8192, KvType::kBf16), with_cache(8192, KvType::kQ8)});
}

TEST(ModelsPage, GivesTheShapesThatTheCodeHas) {
  const std::string page = read(GEMMA_SOURCE_DIR "/models.md");
  for (const char* shape : kShapes) EXPECT_THAT(page, HasSubstr(shape_row(config_of_shape(shape))));
}

TEST(ModelsPage, GivesTheDownloadAndFileSizesThatFollowFromTheShapes) {
  const std::string page = read(GEMMA_SOURCE_DIR "/models.md");
  for (const char* shape : kShapes) EXPECT_THAT(page, HasSubstr(download_row(config_of_shape(shape))));
}

TEST(ModelsPage, GivesTheCacheSizesThatTheRunTimeAllocates) {
  const std::string page = read(GEMMA_SOURCE_DIR "/models.md");
  for (const char* shape : kShapes) {
    for (const auto& [type, name] : kCaches) {
      EXPECT_THAT(page, HasSubstr(cache_row(config_of_shape(shape), type, name)));
    }
  }
}

TEST(ModelsPage, GivesTheMemoryOfWeightsAndCacheTogether) {
  const std::string page = read(GEMMA_SOURCE_DIR "/models.md");
  for (const char* shape : kShapes) {
    for (const WeightTypes types : kFiles) EXPECT_THAT(page, HasSubstr(memory_row(config_of_shape(shape), types)));
  }
}

}  // namespace
}  // namespace gemma
