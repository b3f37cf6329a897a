// The demo model in q8, which is built in, and converted to q4, against the float32 computation of what they were
// converted from.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "gemma/tokenizer.h"
#include "golden/reference.h"
#include "model/convert.h"
#include "model/model_file.h"
#include "runtime/calibrate.h"
#include "support/reader.h"
#include "support/temporary_directory.h"

namespace gemma {
namespace {

// How far the distributions of next tokens are from the reference's.
struct Distance {
  double mean_kl = 0;     // nats
  double perplexity = 0;  // relative change
};

std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  std::vector<double> logprobs(logits.begin(), logits.end());
  for (double& logprob : logprobs) logprob -= largest + std::log(sum);
  return logprobs;
}

double divergence(const std::vector<double>& from, const std::vector<double>& to) {
  double sum = 0;
  for (std::size_t i = 0; i < from.size(); ++i) sum += std::exp(from[i]) * (from[i] - to[i]);
  return sum;
}

class QuantisedGolden : public ::testing::Test {
 protected:
  // Over the windows of the evaluation text.
  static std::vector<Distance> distances(std::span<const Model> models) {
    const std::vector<int> ids = reference_tensor<int>("valid_ids");
    std::vector<double> kl(models.size());
    std::vector<double> log_ratio(models.size());
    std::size_t start = 0;
    int rows = 0;
    int predictions = 0;
    const auto windows = reference()["nll"]["windows"].get<std::vector<nlohmann::json>>();
    for (int w = 0; w < GEMMA_EVALUATION_WINDOWS; ++w) {
      const auto count = windows.at(static_cast<std::size_t>(w))["n"].get<std::size_t>();
      const std::span<const int> tokens = std::span(ids).subspan(start, count);
      start += count;
      const Logits expected = read(demo_model_bf16(), tokens);
      std::vector<Logits> found;
      for (const Model& model : models) found.push_back(read(model, tokens));
      for (std::size_t i = 0; i < count; ++i) {
        const std::vector<double> truth = log_softmax(expected[i]);
        for (std::size_t k = 0; k < models.size(); ++k) {
          const std::vector<double> logprobs = log_softmax(found[k][i]);
          kl[k] += divergence(truth, logprobs);
          if (i + 1 < count) {
            log_ratio[k] +=
                truth[static_cast<std::size_t>(tokens[i + 1])] - logprobs[static_cast<std::size_t>(tokens[i + 1])];
          }
        }
      }
      rows += static_cast<int>(count);
      predictions += static_cast<int>(count) - 1;
    }
    std::vector<Distance> distances;
    for (std::size_t k = 0; k < models.size(); ++k) {
      distances.push_back({kl[k] / rows, std::expm1(log_ratio[k] / predictions)});
    }
    return distances;
  }

  Model converted(WeightTypes types, const std::map<std::string, std::vector<float>>& importance = {}) const {
    const std::filesystem::path output = directory_ / "converted.gemma";
    convert({.source = reference_path("demo-bf16.gemma"), .output = output, .types = types, .importance = importance});
    return load_model(output);  // which keeps the file that is replaced next
  }

  // From a text that the model has written, not the one that it is judged by.
  static std::map<std::string, std::vector<float>> importance() {
    const Tokenizer tokenizer(demo_model_bf16().tokenizer);
    return calibrate(demo_model_bf16(), tokenizer.encode(reference_file("calibration.txt")), tokenizer.bos(), 2, {});
  }

 private:
  static Logits read(const Model& model, std::span<const int> tokens) {
    return read_alone(device_kinds().front(), model, tokens, 512, 2);
  }

  TemporaryDirectory directory_;
};

void report(const char* type, const Distance& distance) {
  std::cout << type << ": mean KL " << distance.mean_kl << ", perplexity " << 100 * distance.perplexity << " %\n";
}

// What the project promises. Measured over the whole text: q8 1.4e-4 and 0.0014 %, q4 6.4e-3 and 0.80 %, q4 with
// calibration 6.2e-3 and 0.69 %.
TEST_F(QuantisedGolden, KeepsTheDistributionsOfTheDemoModel) {
  const std::vector<Model> models = {load_demo_model(), converted({WeightType::kQ4, WeightType::kQ8}),
                                     converted({WeightType::kQ4, WeightType::kQ8}, importance())};
  ASSERT_EQ(models[0].weights.types(), (WeightTypes{WeightType::kQ8, WeightType::kQ8}));
  const std::vector<Distance> found = distances(models);
  report("q8", found[0]);
  report("q4", found[1]);
  report("q4, calibrated", found[2]);
  // Part of the text says less about perplexity: its windows differ by as much as the bar.
  const double width = GEMMA_EVALUATION_WINDOWS == 20 ? 1 : 4;
  EXPECT_LT(found[0].mean_kl, 2.5e-4);
  EXPECT_LT(std::abs(found[0].perplexity), width * 0.0003);
  EXPECT_LT(found[1].mean_kl, 8e-3);
  EXPECT_LT(std::abs(found[1].perplexity), width * 0.011);
  EXPECT_LT(found[2].mean_kl, 7e-3);
  EXPECT_LT(found[2].mean_kl, found[1].mean_kl);
}

}  // namespace
}  // namespace gemma
