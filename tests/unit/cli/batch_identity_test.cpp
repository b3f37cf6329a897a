#include "cli/batch_identity.h"

#include <gtest/gtest.h>

namespace gemma::cli {
namespace {

struct BatchSetup {
  EngineInfo engine;
  EngineOptions engine_options;
  GenerationOptions options;
  InputSurvey input{.bytes = 10, .hash = "ab", .prompts = 3};
  Shard shard;

  BatchSetup() {
    engine.device = "CPU, AVX-512, 2 threads";
    engine.context = 1024;
  }
  Json json() const {
    return to_json(BatchIdentity{.engine = engine,
                                 .engine_options = engine_options,
                                 .options = options,
                                 .format = InputFormat::kText,
                                 .input = input,
                                 .shard = shard});
  }
};

TEST(BatchIdentity, IsTheSameForTheSameRunOnMoreThreadsInOtherChunks) {
  BatchSetup run;
  run.options.temperature = 0.7f;
  BatchSetup again = run;
  again.engine.device = "CPU, AVX-512, 1 thread";
  again.engine_options.chunk = 3;
  again.engine_options.threads = 1;
  again.engine.sequences = 5;
  EXPECT_EQ(differences(run.json(), again.json()), "");
}

TEST(BatchIdentity, TellsWhatDiffersAsItIsWrittenOnTheCommandLine) {
  BatchSetup then;
  then.options.temperature = 0.7f;
  then.options.stop = {"a"};
  then.options.seed = 5;
  BatchSetup now = then;
  now.options.temperature.reset();
  EXPECT_EQ(differences(then.json(), now.json()), "--temperature was 0.7 and is not given");
  now = then;
  now.options.stop = {"a", "b"};
  now.options.repeat_penalty = 1.1f;
  EXPECT_EQ(differences(then.json(), now.json()),
            "--repeat-penalty was 1.0 and is 1.1, --stop was [\"a\"] and is [\"a\",\"b\"]");
  now = then;
  now.input.hash = "cd";
  now.input.bytes = 11;
  EXPECT_EQ(differences(then.json(), now.json()), "INPUT has changed");
  now = then;
  now.engine.model_id = 1;
  EXPECT_EQ(differences(then.json(), now.json()), "the model is another one");
  now = then;
  now.engine.device = "CPU, AVX2, 2 threads";
  EXPECT_EQ(differences(then.json(), now.json()), "--device was \"CPU, AVX-512\" and is \"CPU, AVX2\"");
  EXPECT_EQ(differences(then.json(), now.json(), {"device"}), "");
}

TEST(BatchIdentity, TakesNoSeedForAnySeedAndAnotherForADifference) {
  BatchSetup then;
  then.options.seed = 5;
  BatchSetup now;
  EXPECT_EQ(differences(then.json(), now.json()), "");
  now.options.seed = 6;
  EXPECT_EQ(differences(then.json(), now.json()), "--seed was 5 and is 6");
}

TEST(BatchIdentity, SurvivesTextThatIsNotUtf8) {
  BatchSetup run;
  run.options.stop = {"\xFF"};
  EXPECT_EQ(differences(Json::parse(to_line(run.json())), run.json()), "");
}

TEST(SharedSeed, IsTheSameForAllShardsOfARunAndOnlyForThem) {
  BatchSetup first;
  first.shard = {.number = 1, .count = 2};
  BatchSetup second;
  second.shard = {.number = 2, .count = 2};
  EXPECT_EQ(shared_seed(first.json()), shared_seed(second.json()));
  second.options.top_k = 3;
  EXPECT_NE(shared_seed(first.json()), shared_seed(second.json()));
}

}  // namespace
}  // namespace gemma::cli
