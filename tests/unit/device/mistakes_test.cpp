// That the tolerances bite: an engine with any of these mistakes would fail the comparison with the naive forward pass.
#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <vector>

#include "support/reader.h"
#include "support/small_model.h"
#include "unit/device/device_test.h"

namespace gemma {
namespace {

class Mistakes : public DeviceTest {
 protected:
  static Config sharp_config() {
    Config config = small_config(GetParam().width_multiple);
    config.query_pre_attn_scalar = 0.02;  // scores far beyond the cap, so that what attention does shows in the logits
    config.final_softcap = 1.5f;
    return config;
  }

  // How far the device is from a naive forward pass of a changed model or with a departure from Gemma 2: the typical
  // distance of a logit, since with scores as sharp as these rounding alone moves the odd one far.
  double difference(const std::function<void(Config&)>& change, naive::Departures departures = {}) const {
    departures.cache = GetParam().cache;
    Model changed = model_;
    change(changed.config);
    return typical_difference(logits_, naive::forward(changed, tokens_, departures).logits);
  }

  static void unchanged(Config&) {}

  // Twice what is tolerated: a mistake must stand out, not just fail.
  static double noticeable() { return 2 * GetParam().tolerance; }

 private:
  Model model_ = random_model(sharp_config(), 1);
  std::vector<int> tokens_ = random_tokens(150, model_.config.vocab_size, 2);
  Logits logits_ = read_alone(GetParam(), model_, tokens_, 64);
};
GEMMA_ON_ALL_DEVICES(Mistakes);

TEST_P(Mistakes, NoneIsFoundInTheDevice) {
  const double error = difference(unchanged);
  std::cout << "Typical error of a logit on " << GetParam().name << ": " << error << '\n';
  EXPECT_LT(error, GetParam().tolerance);
}

TEST_P(Mistakes, AWindowOneTooNarrowWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { --config.window; }), noticeable());
}

TEST_P(Mistakes, AWindowOneTooWideWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { ++config.window; }), noticeable());
}

TEST_P(Mistakes, SwappedLayerKindsWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) {
              config.layers = {LayerKind::kGlobal, LayerKind::kLocal, LayerKind::kGlobal};
            }),
            noticeable());
}

TEST_P(Mistakes, AMissingSoftCapOfScoresWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { config.attention_softcap.reset(); }), noticeable());
}

TEST_P(Mistakes, AMissingSoftCapOfLogitsWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { config.final_softcap.reset(); }), noticeable());
}

TEST_P(Mistakes, QueriesScaledByTheHeadSizeWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { config.query_pre_attn_scalar = config.head_dim; }), noticeable());
}

TEST_P(Mistakes, AnotherThetaWouldBeNoticed) {
  EXPECT_GT(difference([](Config& config) { config.rope_theta = 5000; }), noticeable());
}

TEST_P(Mistakes, ANormWithoutOnePlusWouldBeNoticed) {
  naive::Departures departures;
  departures.norm_offset = 0;
  EXPECT_GT(difference(unchanged, departures), noticeable());
}

TEST_P(Mistakes, ARotationOffByOneBetweenQueriesAndKeysWouldBeNoticed) {
  naive::Departures departures;
  departures.query_shift = 1;
  EXPECT_GT(difference(unchanged, departures), noticeable());
}

}  // namespace
}  // namespace gemma
