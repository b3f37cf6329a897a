#include "golden/reference.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <ostream>
#include <span>
#include <stdexcept>

#include "model/model_file.h"
#include "model/safetensors.h"

namespace gemma {

std::filesystem::path reference_path(const std::string& name) {
  return std::filesystem::path(GEMMA_SOURCE_DIR) / "tests" / "golden" / name;
}

std::string reference_file(const std::string& name) {
  const std::filesystem::path path = reference_path(name);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

const nlohmann::json& reference() {
  static const nlohmann::json json = nlohmann::json::parse(reference_file("reference.json"));
  return json;
}

template <typename T>
std::vector<T> reference_tensor(const std::string& name) {
  static const std::string file = reference_file("reference.safetensors");
  static const SafetensorsHeader header =
      SafetensorsHeader::parse(std::as_bytes(std::span(file)), file.size(), "reference.safetensors");
  const TensorInfo* const info = header.find(name);
  if (info == nullptr || bytes_of(info->type) != sizeof(T))
    throw std::runtime_error("reference.safetensors has no such " + name);
  std::vector<T> values(info->bytes / sizeof(T));
  std::memcpy(values.data(), file.data() + info->offset, info->bytes);
  return values;
}
template std::vector<float> reference_tensor(const std::string&);
template std::vector<int> reference_tensor(const std::string&);

const nlohmann::json& ReferencePrompt::expected() const {
  return reference()["prompts"].at(static_cast<std::size_t>(number));
}

const std::vector<ReferencePrompt>& reference_prompts() {
  static const std::vector<ReferencePrompt> prompts = [] {
    std::vector<ReferencePrompt> all;
    for (const nlohmann::json& expected : reference()["prompts"]) {
      ReferencePrompt prompt;
      prompt.number = static_cast<int>(all.size());
      prompt.name = expected["name"];
      prompt.tokens = expected["ids"].get<std::vector<int>>();
      prompt.greedy = expected["greedy"].get<std::vector<int>>();
      prompt.margins = expected["greedy_margin"].get<std::vector<double>>();
      all.push_back(std::move(prompt));
    }
    return all;
  }();
  return prompts;
}

void PrintTo(const ReferencePrompt& prompt, std::ostream* out) { *out << prompt.name; }

const Model& demo_model_bf16() {
  static const Model model = load_model(reference_path("demo-bf16.gemma"));
  return model;
}

}  // namespace gemma
