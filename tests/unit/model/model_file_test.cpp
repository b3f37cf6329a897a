#include "model/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "model/check_scales.h"
#include "model/input_file.h"
#include "model/matrix_parts.h"
#include "model/model_writer.h"
#include "model/weight_layout.h"
#include "support/error_text.h"
#include "support/small_model.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kAdvice = "gemma-convert <hf-directory> -o <file>";

// A .gemma file's bytes, at an address with the alignment that load_model asks for.
class Image {
 public:
  explicit Image(std::string_view bytes) : size_(bytes.size()) {
    std::memcpy(start(), bytes.data(), std::min(bytes.size(), sizeof storage_ - kWeightAlignment));
  }
  std::span<std::byte> bytes() { return {start(), size_}; }
  Model load() { return load_model(bytes(), "test.gemma"); }

 private:
  std::byte* start() {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_);
    return storage_ + (kWeightAlignment - address % kWeightAlignment) % kWeightAlignment;
  }

  std::size_t size_;
  std::byte storage_[512 * 1024];
};

std::string small_file(const Config& config, WeightTypes types = {}) {
  const TemporaryDirectory directory;
  Model model = random_model(config, 5, false, types);
  model.defaults.stop_tokens = {1, 6};
  model.defaults.temperature = 0.7f;
  model.tokenizer = "a tokenizer";
  save_model(model, directory / "small.gemma");
  return read_small_file(directory / "small.gemma", 1 << 20);
}

// Takes a file's header apart, lets `edit` change it, and puts it together with a hash that is right again: damage that
// only a look at the contents can find.
std::string edited(const std::string& file, const std::function<void(SafetensorsHeader&, nlohmann::json&)>& edit) {
  SafetensorsHeader header = SafetensorsHeader::parse(std::as_bytes(std::span(file)), file.size(), "test");
  const std::string data = file.substr(header.data_offset);
  nlohmann::json metadata = nlohmann::json::parse(header.metadata.at("gemma"));
  edit(header, metadata);
  header.metadata["gemma"] = metadata.dump();
  header.metadata["header_hash"] = std::string(32, '0');
  std::string text = serialize_header(header.tensors, header.metadata, kWeightAlignment);
  const std::string digits = header_hash(std::as_bytes(std::span(text)));
  const std::string place = "\"header_hash\":\"";
  text.replace(text.find(place) + place.size(), digits.size(), digits);
  return text + data;
}

void expect_same_weights(const Model& left, const Model& right) {
  struct Bytes {
    std::map<std::string, std::string>& all;
    void operator()(const std::string& name, const Matrix& matrix, int, int) const {
      for (const std::span<const std::byte> part : bytes_of_parts(matrix)) {
        all[name].append(reinterpret_cast<const char*>(part.data()), part.size());
      }
    }
    void operator()(const std::string& name, std::span<const float> norm, int) const {
      all[name] = {reinterpret_cast<const char*>(norm.data()), norm.size_bytes()};
    }
  };
  std::map<std::string, std::string> left_bytes;
  std::map<std::string, std::string> right_bytes;
  Weights left_weights = left.weights;
  Weights right_weights = right.weights;
  visit_weights(left.config, left_weights, Bytes{left_bytes});
  visit_weights(right.config, right_weights, Bytes{right_bytes});
  EXPECT_EQ(left_bytes.size(), right_bytes.size());
  for (const auto& [name, bytes] : left_bytes) EXPECT_TRUE(bytes == right_bytes[name]) << name;
}

TEST(ModelFile, GivesBackWhatWasSaved) {
  for (const bool is_tied : {true, false}) {
    const TemporaryDirectory directory;
    Config config = small_config();
    config.is_embedding_tied = is_tied;
    config.final_softcap.reset();
    config.rope_theta = 12345.678;
    config.layers = {LayerKind::kGlobal, LayerKind::kLocal, LayerKind::kGlobal};
    Model model = random_model(config, 11);
    model.defaults = {.stop_tokens = {3, 1}, .temperature = 0.7f, .top_k = 40, .top_p = std::nullopt, .is_chat = true};
    model.tokenizer = "a tokenizer";
    save_model(model, directory / "saved.gemma");

    const Model loaded = load_model(directory / "saved.gemma");
    EXPECT_EQ(loaded.config, config);
    EXPECT_EQ(loaded.defaults, model.defaults);
    EXPECT_EQ(loaded.tokenizer, "a tokenizer");
    EXPECT_EQ(loaded.name, (directory / "saved.gemma").string());
    EXPECT_EQ(loaded.weights.head.data == loaded.weights.embed.data, is_tied);
    expect_same_weights(loaded, model);
    EXPECT_THAT(verify_model_file(directory / "saved.gemma", {}).damaged_tensors, IsEmpty());
  }
}

TEST(ModelFile, GivesBackQuantisedWeights) {
  for (const WeightTypes types :
       {WeightTypes{WeightType::kQ8, WeightType::kQ8}, WeightTypes{WeightType::kQ4, WeightType::kQ8},
        WeightTypes{WeightType::kQ4, WeightType::kBf16}, WeightTypes{WeightType::kQ4, WeightType::kQ4}}) {
    const TemporaryDirectory directory;
    Config config = small_config(32);
    config.intermediate_size = 288;  // a block and a short one
    config.is_embedding_tied = types.embed == WeightType::kBf16;
    const Model model = random_model(config, 12, false, types);
    save_model(model, directory / "saved.gemma");

    const Model loaded = load_model(directory / "saved.gemma");
    EXPECT_EQ(loaded.weights.types(), types);
    EXPECT_EQ(loaded.weights.head.is_same_as(loaded.weights.embed), config.is_embedding_tied);
    EXPECT_EQ(loaded.weights.bytes(), model.weights.bytes());
    expect_same_weights(loaded, model);
    EXPECT_THAT(verify_model_file(directory / "saved.gemma", {}).damaged_tensors, IsEmpty());
  }
}

TEST(ModelFile, StoresQuantisedMatricesInTheBitsThatTheirTypesSay) {
  Matrix matrix{.type = WeightType::kQ8, .rows = 100, .columns = 1024};
  EXPECT_EQ(static_cast<double>(matrix.bytes()) * 8 / (100 * 1024), 8.5);
  matrix.type = WeightType::kQ4;
  EXPECT_EQ(static_cast<double>(matrix.bytes()) * 8 / (100 * 1024), 4.625);
}

TEST(ModelFile, AlignsEveryWeightThoughSizesAreOdd) {
  Config config = small_config();
  config.hidden_size = 33;
  config.intermediate_size = 17;
  Image image(small_file(config));
  Model model = image.load();
  struct Checker {
    void operator()(const std::string& name, const Matrix& matrix, int, int) const { check(name, matrix.data); }
    void operator()(const std::string& name, std::span<const float> norm, int) const { check(name, norm.data()); }
    static void check(const std::string& name, const void* address) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(address) % kWeightAlignment, 0u) << name;
    }
  };
  visit_weights(config, model.weights, Checker{});
}

TEST(ModelFile, HoldsTheDemoModel) {
  const Model demo = load_demo_model();
  EXPECT_EQ(demo.config.embedding_parameters() + demo.config.other_parameters(), 13'117'760);
  EXPECT_EQ(demo.config.layers, alternating_layers(8));
  EXPECT_EQ(demo.config.window, 128);
  EXPECT_EQ(demo.defaults.stop_tokens, (std::vector<int>{1, 6}));
  EXPECT_EQ(demo.defaults.temperature, 0.7f);
  EXPECT_EQ(demo.defaults.top_k, 40);
  EXPECT_FALSE(demo.defaults.is_chat);
  EXPECT_EQ(demo.tokenizer.size(), 63'198u);
  EXPECT_EQ(demo.weights.types(), (WeightTypes{WeightType::kQ8, WeightType::kQ8}));

  const Model file = load_model(GEMMA_SOURCE_DIR "/models/demo.gemma");
  EXPECT_EQ(file.identity, demo.identity);
  expect_same_weights(file, demo);
  EXPECT_THAT(verify_model_file(GEMMA_SOURCE_DIR "/models/demo.gemma", {}).damaged_tensors, IsEmpty());
}

TEST(ModelFile, RefusesWhatIsNotAFile) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "empty").flush();
  EXPECT_THAT(error_text([&] { load_model(directory / "missing"); }), HasSubstr("No such file"));
  EXPECT_THAT(error_text([&] { load_model(directory.path()); }), HasSubstr("it is a directory"));
  EXPECT_THAT(error_text([&] { load_model(directory / "empty"); }), HasSubstr("it is empty"));
}

TEST(ModelFile, RefusesOtherFormatsByName) {
  EXPECT_THAT(error_text([] { Image("GGUF and then some").load(); }), HasSubstr("it is a GGUF file"));
  const std::vector<TensorInfo> tensors = {
      {.name = "model.norm.weight", .type = DType::kF32, .shape = {1}, .bytes = 4}};
  const std::string safetensors = serialize_header(tensors, {{"format", "pt"}}, 8) + "data";
  EXPECT_THAT(error_text([&] { Image(safetensors).load(); }),
              AllOf(HasSubstr("not a .gemma file"), HasSubstr(kAdvice)));
  EXPECT_THAT(error_text([] { Image("An ordinary text, and no model at all.").load(); }),
              HasSubstr("not a safetensors file"));
}

TEST(ModelFile, RefusesTruncationAnywhere) {
  const std::string file = small_file(small_config());
  const Image whole(file);
  for (std::size_t size = 0; size < file.size(); size += size < 16'384 ? 61 : 1021) {
    EXPECT_THAT(error_text([&] { Image(file.substr(0, size)).load(); }), HasSubstr("cannot load 'test.gemma'")) << size;
  }
  EXPECT_THAT(error_text([&] { Image(file + "x").load(); }), HasSubstr("1 bytes follow the last tensor"));
}

TEST(ModelFile, NoticesAFlippedBitAnywhereInItsHeader) {
  const std::string file = small_file(small_config());
  Image image(file);
  image.load();
  const std::size_t header_bytes = SafetensorsHeader::parse(image.bytes(), file.size(), "test").data_offset;
  for (std::size_t i = 0; i < header_bytes; ++i) {
    const std::byte flip = std::byte{1} << (i % 8);
    image.bytes()[i] ^= flip;
    EXPECT_THAT(error_text([&] { image.load(); }), HasSubstr("cannot load 'test.gemma'")) << i;
    image.bytes()[i] ^= flip;
  }
}

TEST(ModelFile, SurvivesRandomMetadataWithARightHash) {
  const std::string file = small_file(small_config());
  std::mt19937 random(1);
  int loaded = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::string bad = edited(file, [&](SafetensorsHeader& header, nlohmann::json& metadata) {
      // Some member, anywhere, becomes something else.
      nlohmann::json flat = metadata.flatten();
      auto member = flat.begin();
      std::advance(member, std::uniform_int_distribution<std::size_t>(0, flat.size() - 1)(random));
      const nlohmann::json values[] = {0,       1,    -1, 2147483648,          1e300, -0.5,
                                       nullptr, true, "", "sliding_attention", 4096,  16};
      *member = values[std::uniform_int_distribution<std::size_t>(0, std::size(values) - 1)(random)];
      metadata = flat.unflatten();
      if (round % 5 == 0) std::swap(header.tensors.front().name, header.tensors[1 + round % 7].name);
    });
    loaded += error_text([&] { Image(bad).load(); }).empty() ? 1 : 0;
  }
  EXPECT_GT(loaded, 0);     // a soft cap of 16, for example, is a model, too
  EXPECT_LT(loaded, 1000);  // but not many values fit
}

TEST(ModelFile, SaysWhatIsWrongAndToConvertAgain) {
  struct Case {
    const char* problem;
    std::function<void(SafetensorsHeader&, nlohmann::json&)> edit;
  };
  auto tensor = [](SafetensorsHeader& header, const char* name) -> TensorInfo& {
    return *std::find_if(header.tensors.begin(), header.tensors.end(),
                         [name](auto& info) { return info.name == name; });
  };
  const Case cases[] = {
      {"format version 99, but this program reads version 1", [](auto&, auto& json) { json["version"] = 99; }},
      {"no weight type 'q2'", [](auto&, auto& json) { json["type"] = "q2"; }},
      {"layers.0.mlp.gate_up has shape [160, 48], but config says [320, 48]",
       [](auto&, auto& json) { json["config"]["intermediate_size"] = 160; }},
      {"no tensor 'layers.3.attn.norm'",
       [](auto&, auto& json) {
         json["config"]["num_hidden_layers"] = 4;
         json["config"]["layer_types"].push_back("full_attention");
       }},
      {"'layers.2.attn.norm' does not belong where it is",
       [](auto&, auto& json) {
         json["config"]["num_hidden_layers"] = 2;
         json["config"]["layer_types"].erase(2);
       }},
      {"3 layer_types, but num_hidden_layers is 2", [](auto&, auto& json) { json["config"]["num_hidden_layers"] = 2; }},
      {"no tensor 'head'", [](auto&, auto& json) { json["config"]["tie_word_embeddings"] = false; }},
      {"embed has shape [67, 48], but config says [65, 48]",
       [](auto&, auto& json) { json["config"]["vocab_size"] = 65; }},
      {"embed has type F16, but must have BF16",
       [tensor](auto& header, auto&) { tensor(header, "embed").type = DType::kF16; }},
      {"no tensor 'tokenizer'", [tensor](auto& header, auto&) { tensor(header, "tokenizer").name = "tokeniser"; }},
      {"no hash of embed", [](auto&, auto& json) { json["hashes"].erase("embed"); }},
      {"malformed hash", [](auto&, auto& json) { json["hashes"]["embed"] = "12"; }},
      {"stop token (eos_token_id) is not in the vocabulary",
       [](auto&, auto& json) {
         json["generation"]["stop_tokens"] = {1, 67};
       }},
      {"stop token (eos_token_id) is not in the vocabulary",
       [](auto&, auto& json) {
         json["generation"]["stop_tokens"] = {1, "x"};
       }},
      {"no stop token", [](auto&, auto& json) { json["generation"]["stop_tokens"] = nlohmann::json::array(); }},
      {"temperature", [](auto&, auto& json) { json["generation"]["temperature"] = -1; }},
      {"top_k", [](auto&, auto& json) { json["generation"]["top_k"] = -1; }},
      {"top_p", [](auto&, auto& json) { json["generation"]["top_p"] = 1.5; }},
      {"no 'rope_theta'", [](auto&, auto& json) { json["config"].erase("rope_theta"); }},
      {"'hidden_size' that is out of range", [](auto&, auto& json) { json["config"]["hidden_size"] = 1099511627776; }},
      {"hidden_size is 0", [](auto&, auto& json) { json["config"]["hidden_size"] = 0; }},
      {"sliding_window is 0", [](auto&, auto& json) { json["config"]["sliding_window"] = 0; }},
  };
  const std::string file = small_file(small_config());
  Image(edited(file, [](auto&, auto&) {})).load();
  for (const Case& bad : cases) {
    EXPECT_THAT(error_text([&] { Image(edited(file, bad.edit)).load(); }),
                AllOf(HasSubstr("cannot load 'test.gemma'"), HasSubstr(bad.problem), HasSubstr(kAdvice)));
  }
}

TEST(ModelFile, RefusesQuantisedMatricesWhosePartsDoNotFitTogether) {
  struct Case {
    const char* problem;
    std::function<void(SafetensorsHeader&, nlohmann::json&)> edit;
  };
  auto tensor = [](SafetensorsHeader& header, const char* name) -> TensorInfo& {
    return *std::find_if(header.tensors.begin(), header.tensors.end(),
                         [name](auto& info) { return info.name == name; });
  };
  const Case cases[] = {
      {"layers.0.attn.qkv.scales has shape [256, 1], but config says [256, 2]",
       [tensor](auto& header, auto&) {
         TensorInfo& scales = tensor(header, "layers.0.attn.qkv.scales");
         scales.shape = {256, 1};
         scales.bytes = 256;
         const auto after = header.tensors.begin() + (&scales - header.tensors.data()) + 1;
         header.tensors.insert(after, {.name = "rest", .type = DType::kU8, .shape = {256}, .bytes = 256});
       }},
      {"layers.0.attn.qkv.d has type BF16, but must have F16",
       [tensor](auto& header, auto&) { tensor(header, "layers.0.attn.qkv.d").type = DType::kBf16; }},
      {"embed.codes has type U8, but must have I8",
       [tensor](auto& header, auto&) { tensor(header, "embed.codes").type = DType::kU8; }},
      {"no tensor 'layers.2.mlp.down.minimums'",
       [tensor](auto& header, auto&) { tensor(header, "layers.2.mlp.down.minimums").name = "mimimums"; }},
      {"no tensor 'layers.1.mlp.down.m'",
       [tensor](auto& header, auto&) { tensor(header, "layers.1.mlp.down.m").name = "layers.1.mlp.down.n"; }},
      {"no hash of layers.1.attn.out.d", [](auto&, auto& json) { json["hashes"].erase("layers.1.attn.out.d"); }},
      {"no weight type 'q3'", [](auto&, auto& json) { json["embed_type"] = "q3"; }},
      {"no tensor 'embed'", [](auto&, auto& json) { json["embed_type"] = "bf16"; }},
      {"embed.codes has type I8, but must have U8", [](auto&, auto& json) { json.erase("embed_type"); }},
      {"no tensor 'layers.0.attn.qkv'", [](auto&, auto& json) { json["type"] = "bf16"; }},
      {"embed has rows of 48, which q8 cannot store", [](auto&, auto& json) { json["config"]["hidden_size"] = 48; }},
      {"layers.0.mlp.down has rows of 81, which q4 cannot store",
       [](auto&, auto& json) { json["config"]["intermediate_size"] = 81; }},
      {"layers.0.mlp.gate_up.codes has shape [192, 32], but config says [256, 32]",
       [](auto&, auto& json) { json["config"]["intermediate_size"] = 128; }},
  };
  const std::string file = small_file(small_config(32), {WeightType::kQ4, WeightType::kQ8});
  Image(edited(file, [](auto&, auto&) {})).load();
  for (const Case& bad : cases) {
    EXPECT_THAT(error_text([&] { Image(edited(file, bad.edit)).load(); }),
                AllOf(HasSubstr("cannot load 'test.gemma'"), HasSubstr(bad.problem)));
  }
}

TEST(ModelFile, FindsAScaleThatIsNotFinite) {
  const std::string file = small_file(small_config(32), {WeightType::kQ4, WeightType::kQ8});
  const SafetensorsHeader header = SafetensorsHeader::parse(std::as_bytes(std::span(file)), file.size(), "test");
  check_scales(Image(file).load());
  for (const char* name : {"embed.scales", "layers.0.attn.qkv.d", "layers.2.mlp.down.m"}) {
    const TensorInfo& tensor = *header.find(name);
    for (const std::uint64_t place : {tensor.offset, tensor.offset + tensor.bytes - 2}) {
      for (const std::uint16_t bits : {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff}) {
        Image image(file);
        std::memcpy(image.bytes().data() + place, &bits, sizeof bits);
        EXPECT_THAT(error_text([&] { check_scales(image.load()); }),
                    AllOf(HasSubstr("cannot use 'test.gemma'"), HasSubstr(std::string(name) + " has a scale")));
      }
      Image image(file);
      const std::uint16_t largest = 0xfbff;
      std::memcpy(image.bytes().data() + place, &largest, sizeof largest);
      check_scales(image.load());
    }
  }
}

TEST(ModelFile, LoadsWithAFlippedWeightAndFindsItWhenVerified) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "small.gemma";
  Config config = small_config();
  config.hidden_size = 33;  // so that there is padding
  const std::string file = small_file(config);
  const SafetensorsHeader header = SafetensorsHeader::parse(std::as_bytes(std::span(file)), file.size(), "test");
  for (const char* name : {"embed", "layers.1.attn.qkv", "layers.2.mlp.norm", "embed.pad", "tokenizer"}) {
    const TensorInfo& tensor = *header.find(name);
    for (const std::uint64_t place : {tensor.offset, tensor.offset + tensor.bytes - 1}) {
      std::string flipped = file;
      flipped[place] = static_cast<char>(flipped[place] ^ 0x40);
      std::ofstream(path, std::ios::binary) << flipped;
      EXPECT_EQ(load_model(path).config.hidden_size, 33) << name;
      const Verification result = verify_model_file(path, {});
      EXPECT_THAT(result.damaged_tensors, ElementsAre(name));
      EXPECT_EQ(result.bytes, file.size());
    }
  }
}

TEST(ModelFile, HasAnIdentityThatFollowsTheWeights) {
  const TemporaryDirectory directory;
  const Model one = random_model(small_config(), 1);
  const Model two = random_model(small_config(), 2);
  save_model(one, directory / "one.gemma");
  save_model(one, directory / "again.gemma");
  save_model(two, directory / "two.gemma");
  EXPECT_EQ(load_model(directory / "one.gemma").identity, load_model(directory / "again.gemma").identity);
  EXPECT_NE(load_model(directory / "one.gemma").identity, load_model(directory / "two.gemma").identity);
}

}  // namespace
}  // namespace gemma
