#include "model/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/dequantise.h"
#include "model/input_file.h"
#include "model/model_file.h"
#include "model/weight_layout.h"
#include "support/error_text.h"
#include "support/hf_directory.h"
#include "support/small_model.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

using testing::HasSubstr;

constexpr const char* kGolden = GEMMA_SOURCE_DIR "/tests/golden";
constexpr const char* kDemoInBf16 = GEMMA_SOURCE_DIR "/tests/golden/demo-bf16.gemma";

std::string contents(const std::filesystem::path& path) { return read_small_file(path, 100 << 20); }

// The demo model's tokenizer has 4096 pieces; the vocabulary may be larger.
Config tokenized_config() {
  Config config = small_config();
  config.vocab_size = 4100;
  return config;
}

const std::string& tokenizer_model() {
  static const std::string model = contents(std::filesystem::path(kGolden) / "tokenizer.model");
  return model;
}

// A directory to convert, and the conversion of it.
class Workplace {
 public:
  HfDirectory source = hf_directory(exact_model(tokenized_config(), tokenizer_model()), DType::kBf16);

  std::filesystem::path source_path() const { return directory_ / "source"; }
  std::filesystem::path output_path() const { return directory_ / "model.gemma"; }

  Conversion convert() {
    std::filesystem::remove_all(source_path());
    source.write(source_path());
    return gemma::convert({.source = source_path(), .output = output_path()});
  }

  // The message of a conversion that must fail, and leave nothing.
  std::string failure() {
    std::string message = error_text([this] { convert(); });
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      EXPECT_EQ(entry.path(), source_path()) << "left behind";
    }
    return message;
  }

  nlohmann::json config() const { return nlohmann::json::parse(source.files.at("config.json")); }
  void set_config(const nlohmann::json& json) { source.files["config.json"] = json.dump(); }

 private:
  TemporaryDirectory directory_;
};

void expect_same_weights(const Model& left, const Model& right) {
  struct Bytes {
    std::string& all;
    void operator()(const std::string&, const Matrix& matrix, int, int) const {
      all.append(reinterpret_cast<const char*>(matrix.data), static_cast<std::size_t>(matrix.bytes()));
    }
    void operator()(const std::string&, std::span<const float> norm, int) const {
      all.append(reinterpret_cast<const char*>(norm.data()), norm.size_bytes());
    }
  };
  std::string left_bytes;
  std::string right_bytes;
  Weights left_weights = left.weights;
  Weights right_weights = right.weights;
  visit_weights(left.config, left_weights, Bytes{left_bytes});
  visit_weights(right.config, right_weights, Bytes{right_bytes});
  EXPECT_TRUE(left_bytes == right_bytes);
}

TEST(Convert, KeepsEveryWeightOfEverySourceType) {
  for (const bool is_tied : {true, false}) {
    for (const DType type : {DType::kBf16, DType::kF16, DType::kF32}) {
      Config config = tokenized_config();
      config.is_embedding_tied = is_tied;
      config.attention_softcap.reset();
      const Model model = exact_model(config, tokenizer_model());
      Workplace place;
      place.source = hf_directory(model, type);
      place.convert();
      const Model converted = load_model(place.output_path());
      config.name = "model";
      EXPECT_EQ(converted.config, config);
      EXPECT_EQ(converted.defaults.stop_tokens, model.defaults.stop_tokens);
      EXPECT_EQ(converted.tokenizer, model.tokenizer);
      expect_same_weights(converted, model);
    }
  }
}

TEST(Convert, ReadsShardsAsItReadsOneFile) {
  Workplace place;
  place.convert();
  const std::string whole = contents(place.output_path());
  place.source.split();
  place.convert();
  EXPECT_TRUE(contents(place.output_path()) == whole);
}

TEST(Convert, MakesTheDemoModelAgainFromTheDirectoryThatTransformersSaves) {
  const std::filesystem::path golden = std::filesystem::path(kGolden) / "hf";
  const Model demo = load_model(kDemoInBf16);
  HfDirectory directory = hf_directory(demo, DType::kBf16);
  const std::map<std::string, HfTensorData> tensors = std::exchange(directory.weights, {}).at("model.safetensors");
  const std::string index = contents(golden / "model.safetensors.index.json");
  const nlohmann::json index_json = nlohmann::json::parse(index);
  for (const auto& [name, shard] : index_json.at("weight_map").items()) {
    directory.weights[shard][name] = tensors.at(name);
  }
  directory.files["model.safetensors.index.json"] = index;
  directory.files["generation_config.json"] = contents(golden / "generation_config.json");
  for (const char* spelling : {"config.json", "config_classic.json"}) {
    const TemporaryDirectory work;
    directory.files["config.json"] = contents(golden / spelling);
    directory.write(work / "hf");
    convert({.source = work / "hf", .output = work / "demo.gemma"});
    EXPECT_TRUE(contents(work / "demo.gemma") == contents(kDemoInBf16)) << spelling;
  }
}

TEST(Convert, StopsAtTheEndOfATurnEvenIfTheSourceForgotIt) {
  Workplace place;
  nlohmann::json config = place.config();
  config["eos_token_id"] = 1;
  place.set_config(config);
  EXPECT_EQ(place.convert().defaults.stop_tokens, (std::vector<int>{1, 6}));
}

TEST(Convert, AsksTheSourceWhetherItIsForChatUnlessTold) {
  Workplace place;
  EXPECT_FALSE(place.convert().defaults.is_chat);
  place.source.files["tokenizer_config.json"] = R"({"chat_template": "text"})";
  EXPECT_TRUE(place.convert().defaults.is_chat);
  const Conversion told = convert({.source = place.source_path(), .output = place.output_path(), .is_chat = false});
  EXPECT_FALSE(told.defaults.is_chat);
  EXPECT_FALSE(load_model(place.output_path()).defaults.is_chat);
}

TEST(Convert, IgnoresTheRotaryTableOfOldCheckpoints) {
  Workplace place;
  const std::string name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  place.source.weights["model.safetensors"][name] = {{.name = name, .type = DType::kF32, .shape = {1}, .bytes = 4},
                                                     std::string(4, '\0')};
  EXPECT_EQ(place.convert().config.layer_count(), 3);
}

TEST(Convert, NamesEachThingThatIsWrongWithASource) {
  struct Case {
    const char* problem;
    std::function<void(HfDirectory&)> spoil;
  };
  auto set_config = [](HfDirectory& hf, const char* member, const nlohmann::json& value) {
    nlohmann::json json = nlohmann::json::parse(hf.files.at("config.json"));
    json[member] = value;
    hf.files["config.json"] = json.dump();
  };
  const Case cases[] = {
      {"has no config.json", [](auto& hf) { hf.files.erase("config.json"); }},
      {"holds a LoRA adapter",
       [](auto& hf) {
         hf.files.erase("config.json");
         hf.files["adapter_config.json"] = "{}";
       }},
      {"config.json' is damaged: it is not a JSON object", [](auto& hf) { hf.files["config.json"] = "{\"model"; }},
      {"Only Gemma 2", [&](auto& hf) { set_config(hf, "model_type", "llama"); }},
      {"has no tokenizer.model", [](auto& hf) { hf.files.erase("tokenizer.model"); }},
      {"tokenizer", [](auto& hf) { hf.files["tokenizer.model"] = "not a tokenizer"; }},
      {"tokenizer.model has 4096 pieces, but config.json has a vocab_size of 4000",
       [&](auto& hf) { set_config(hf, "vocab_size", 4000); }},
      {"not in the vocabulary", [&](auto& hf) { set_config(hf, "eos_token_id", 4100); }},
      {"neither model.safetensors nor", [](auto& hf) { hf.weights.clear(); }},
      {"pointer to them. Fetch them with: git lfs pull",
       [](auto& hf) {
         hf.weights.clear();
         hf.files["model.safetensors"] = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
       }},
      {"model-00002-of-00002.safetensors' is missing",
       [](auto& hf) {
         hf.split();
         hf.weights.erase("model-00002-of-00002.safetensors");
       }},
      {"has no tensor 'model.norm.weight', but 'model.safetensors.index.json' says so",
       [](auto& hf) {
         hf.split();
         for (auto& [file, tensors] : hf.weights) tensors.erase("model.norm.weight");
       }},
      {"both in",
       [](auto& hf) {
         hf.split();
         const HfTensorData norm = hf.tensor("model.norm.weight");
         for (auto& [file, tensors] : hf.weights) tensors["model.norm.weight"] = norm;
       }},
      {"that 'model.safetensors.index.json' does not name",
       [](auto& hf) {
         hf.split();
         HfTensorData extra = hf.tensor("model.norm.weight");
         extra.info.name = "extra";
         hf.weights.begin()->second["extra"] = extra;
       }},
      {"has no weight_map",
       [](auto& hf) {
         hf.split();
         hf.files["model.safetensors.index.json"] = "{}";
       }},
      {"names a shard '../elsewhere', which is not a plain file name",
       [](auto& hf) {
         hf.split();
         hf.files["model.safetensors.index.json"] = R"({"weight_map": {"model.norm.weight": "../elsewhere"}})";
       }},
      {"has no tensor 'model.layers.1.mlp.up_proj.weight'",
       [](auto& hf) { hf.weights["model.safetensors"].erase("model.layers.1.mlp.up_proj.weight"); }},
      {"has a tensor 'model.layers.2.input_layernorm.weight' that Gemma 2 with this config.json does not have",
       [&](auto& hf) {
         set_config(hf, "num_hidden_layers", 2);
         set_config(hf, "layer_types", nullptr);
       }},
      {"has a tensor 'lm_head.weight' that config.json does not ask for",
       [](auto& hf) {
         HfTensorData head = hf.tensor("model.embed_tokens.weight");
         head.info.name = "lm_head.weight";
         hf.weights["model.safetensors"]["lm_head.weight"] = head;
       }},
      {"has no tensor 'lm_head.weight'", [&](auto& hf) { set_config(hf, "tie_word_embeddings", false); }},
      {"has shape [80, 48], but config.json says [96, 48]", [&](auto& hf) { set_config(hf, "intermediate_size", 96); }},
      {"has type I16, but only BF16, F16 and F32",
       [](auto& hf) { hf.tensor("model.layers.0.self_attn.k_proj.weight").info.type = DType::kI16; }},
      {"'model.layers.0.self_attn.k_proj.weight' in",
       [](auto& hf) {
         std::memcpy(hf.tensor("model.layers.0.self_attn.k_proj.weight").bytes.data() + 96, "\xc0\x7f", 2);
       }},
      {"has a NaN at [1, 0]",
       [](auto& hf) {
         std::memcpy(hf.tensor("model.layers.0.self_attn.k_proj.weight").bytes.data() + 96, "\xc0\x7f", 2);
       }},
      {"has an infinity at [47]",
       [](auto& hf) { std::memcpy(hf.tensor("model.norm.weight").bytes.data() + 94, "\x80\xff", 2); }},
      {"has a number too large for bf16 at [0, 0]",
       [](auto& hf) {
         HfTensorData& tensor = hf.tensor("model.layers.2.self_attn.o_proj.weight");
         const float largest = std::numeric_limits<float>::max();
         tensor.info.type = DType::kF32;
         tensor.info.bytes *= 2;
         tensor.bytes.assign(tensor.info.bytes, '\0');
         std::memcpy(tensor.bytes.data(), &largest, sizeof largest);
       }},
  };
  for (const Case& bad : cases) {
    Workplace place;
    bad.spoil(place.source);
    EXPECT_THAT(place.failure(), HasSubstr(bad.problem));
  }
}

TEST(Convert, RefusesADamagedShard) {
  Workplace place;
  place.source.write(place.source_path());
  const std::filesystem::path weights = place.source_path() / "model.safetensors";
  std::filesystem::resize_file(weights, std::filesystem::file_size(weights) - 1);
  const auto run = [&] { convert({.source = place.source_path(), .output = place.output_path()}); };
  EXPECT_THAT(error_text(run), HasSubstr("ends beyond the end of the file"));
  std::filesystem::resize_file(weights, 5);
  EXPECT_THAT(error_text(run), HasSubstr("too short to have a header"));
  EXPECT_FALSE(std::filesystem::exists(place.output_path()));
}

TEST(Convert, RefusesASourceThatIsNoModel) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "model.gguf") << "GGUF...";
  std::ofstream(directory / "model.safetensors") << "text";
  const auto message = [&](const std::string& name) {
    return error_text([&] { convert({.source = directory / name, .output = directory / "out.gemma"}); });
  };
  EXPECT_THAT(message("model.gguf"), HasSubstr("is a GGUF file"));
  EXPECT_THAT(message("model.safetensors"), HasSubstr("not a safetensors file"));
  EXPECT_THAT(message("missing"), HasSubstr("there is no directory or file"));
}

// Converts the workplace's directory, and then converts what came of it again.
class Requantiser {
 public:
  explicit Requantiser(Config config = small_config(32)) {
    config.vocab_size = 4100;
    place_.source = hf_directory(exact_model(config, tokenizer_model()), DType::kBf16);
    place_.convert();
  }

  std::filesystem::path directory() const { return place_.source_path(); }
  std::filesystem::path bf16_file() const { return place_.output_path(); }

  // The bytes of the file that is made.
  std::string convert(const std::filesystem::path& source, WeightTypes types) const {
    const std::filesystem::path output = directory_ / "again.gemma";
    gemma::convert({.source = source, .output = output, .types = types});
    return contents(output);
  }

 private:
  Workplace place_;
  TemporaryDirectory directory_;
};

TEST(Convert, MakesTheSameFromAModelFileAsFromItsDirectory) {
  const Requantiser place;
  for (const WeightTypes types :
       {WeightTypes{}, WeightTypes{WeightType::kQ8, WeightType::kQ8}, WeightTypes{WeightType::kQ4, WeightType::kQ8}}) {
    EXPECT_TRUE(place.convert(place.bf16_file(), types) == place.convert(place.directory(), types));
  }
}

TEST(Convert, QuantisesEveryMatrixAndKeepsNorms) {
  const Requantiser place;
  const TemporaryDirectory directory;
  const WeightTypes types{WeightType::kQ4, WeightType::kQ8};
  convert({.source = place.bf16_file(), .output = directory / "q4.gemma", .types = types});
  Model quantised = load_model(directory / "q4.gemma");
  EXPECT_EQ(quantised.weights.types(), types);
  EXPECT_THAT(verify_model_file(directory / "q4.gemma", {}).damaged_tensors, testing::IsEmpty());

  struct Collector {
    std::vector<Matrix>& matrices;
    std::vector<float>& norms;
    void operator()(const std::string&, const Matrix& matrix, int, int) const { matrices.push_back(matrix); }
    void operator()(const std::string&, std::span<const float> norm, int) const {
      norms.insert(norms.end(), norm.begin(), norm.end());
    }
  };
  std::vector<Matrix> before, after;
  std::vector<float> norms_before, norms_after;
  Model original = load_model(place.bf16_file());
  visit_weights(original.config, original.weights, Collector{before, norms_before});
  visit_weights(quantised.config, quantised.weights, Collector{after, norms_after});
  EXPECT_EQ(norms_after, norms_before);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    std::vector<float> expected(static_cast<std::size_t>(before[i].columns));
    std::vector<float> found(expected.size());
    // The test's weights are evenly distributed over two units: one step is at most two 15ths, or a 127th.
    const float step = after[i].type == WeightType::kQ8 ? 1.0f / 127 : 2.0f / 15;
    for (int row = 0; row < before[i].rows; ++row) {
      dequantise(before[i], row, expected);
      dequantise(after[i], row, found);
      for (std::size_t j = 0; j < found.size(); ++j) ASSERT_NEAR(found[j], expected[j], step) << i << " " << row;
    }
  }
}

TEST(Convert, RefusesWhatCannotBeQuantised) {
  const WeightTypes q4{WeightType::kQ4, WeightType::kQ8};
  const TemporaryDirectory directory;
  const auto message = [&](const std::filesystem::path& source) {
    return error_text([&] { convert({.source = source, .output = directory / "out.gemma", .types = q4}); });
  };
  const Requantiser odd{small_config()};
  EXPECT_THAT(message(odd.bf16_file()), HasSubstr("embed has rows of 48, which q8 cannot store"));

  const Requantiser place;
  convert({.source = place.bf16_file(), .output = directory / "q4.gemma", .types = q4});
  EXPECT_THAT(message(directory / "q4.gemma"), HasSubstr("is quantised already (q4)"));

  Workplace large;
  Config config = small_config(32);
  config.vocab_size = 4100;
  large.source = hf_directory(exact_model(config, tokenizer_model()), DType::kF32);
  const float value = 1e9f;
  std::memcpy(large.source.tensor("model.layers.1.mlp.down_proj.weight").bytes.data() + 4 * (3 * 96 + 5), &value, 4);
  large.convert();
  EXPECT_THAT(message(large.source_path()), HasSubstr("has a number too large for q4 at [3, 5]"));
  EXPECT_FALSE(std::filesystem::exists(directory / "out.gemma"));
}

TEST(Convert, NeverWritesOverItsSource) {
  Workplace place;
  place.convert();
  const std::string before = contents(place.source_path() / "model.safetensors");
  const auto message = [&](const std::filesystem::path& output) {
    return error_text([&] { convert({.source = place.source_path(), .output = output}); });
  };
  EXPECT_THAT(message(place.source_path() / "model.safetensors"), HasSubstr("is a file of the source"));
  EXPECT_THAT(message(place.source_path() / ".." / "source" / "config.json"), HasSubstr("is a file of the source"));
  EXPECT_THAT(message(place.source_path()), HasSubstr("it is a directory"));
  EXPECT_THAT(error_text([&] { convert({.source = place.output_path(), .output = place.output_path()}); }),
              HasSubstr("is a file of the source"));
  EXPECT_TRUE(contents(place.source_path() / "model.safetensors") == before);
}

TEST(Convert, LeavesNothingWhenInterruptedAndTheOldFileAsItWas) {
  Workplace place;
  place.convert();
  const std::string before = contents(place.output_path());
  int calls = 0;
  const auto interrupt = [&calls](std::uint64_t, std::uint64_t) { return ++calls < 3; };
  EXPECT_THAT(error_text([&] {
                convert({.source = place.source_path(), .output = place.output_path(), .progress = interrupt});
              }),
              HasSubstr("interrupted"));
  EXPECT_TRUE(contents(place.output_path()) == before);
  std::filesystem::remove(place.output_path());
  calls = 0;
  EXPECT_THROW(convert({.source = place.source_path(), .output = place.output_path(), .progress = interrupt}), Error);
  EXPECT_TRUE(std::filesystem::is_empty(place.output_path().parent_path()) ||
              ++std::filesystem::directory_iterator(place.output_path().parent_path()) ==
                  std::filesystem::directory_iterator());
}

}  // namespace
}  // namespace gemma
