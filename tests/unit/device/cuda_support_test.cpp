#include "device/cuda_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "model/model_file.h"
#include "support/small_model.h"

namespace gemma {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Model model_of(WeightTypes types) { return random_model(small_config(32), 1, /*cheap=*/true, types); }

constexpr WeightType kBf16 = WeightType::kBf16, kQ8 = WeightType::kQ8, kQ4 = WeightType::kQ4;

TEST(CudaSupport, TakesWhatGemmaConvertMakesWithoutEmbedTypeAndAllOfQ4) {
  for (const WeightTypes types :
       {WeightTypes{kBf16, kBf16}, WeightTypes{kQ8, kQ8}, WeightTypes{kQ4, kQ8}, WeightTypes{kQ4, kQ4}}) {
    for (const KvType cache : {KvType::kBf16, KvType::kQ8})
      EXPECT_THAT(why_not_on_cuda(model_of(types), cache), IsEmpty());
  }
}

TEST(CudaSupport, SaysHowToMakeAFileItCanRunOfOneWithOtherTypes) {
  for (const WeightTypes types : {WeightTypes{kBf16, kQ8}, WeightTypes{kBf16, kQ4}, WeightTypes{kQ8, kBf16},
                                  WeightTypes{kQ8, kQ4}, WeightTypes{kQ4, kBf16}}) {
    const std::string why = why_not_on_cuda(model_of(types), KvType::kBf16);
    EXPECT_THAT(why, HasSubstr("gemma-convert --type " + std::string(name_of(types.layers)) + " without --embed-type"));
  }
}

TEST(CudaSupport, RefusesACacheInF32AndWidthsThatAreNotMultiplesOf32) {
  Model model = model_of({});
  EXPECT_THAT(why_not_on_cuda(model, KvType::kF32), HasSubstr("leave out --kv-type"));
  model.config.intermediate_size = 100;
  EXPECT_THAT(why_not_on_cuda(model, KvType::kBf16), HasSubstr("the intermediate size is 100"));
}

TEST(CudaSupport, RefusesNormsOfQuantisedModelsThatFloat16CannotHold) {
  for (const WeightType type : {kBf16, kQ8, kQ4}) {
    Model model = model_of({type, type});
    std::vector<float> norm(static_cast<std::size_t>(model.config.hidden_size), 1.0f);
    model.weights.layers.back().mlp_norm = norm;
    EXPECT_THAT(why_not_on_cuda(model, KvType::kBf16), IsEmpty());
    norm[1] = -65504;
    EXPECT_EQ(why_not_on_cuda(model, KvType::kBf16).empty(), type == kBf16);
  }
}

constexpr std::size_t kGigabyte = 1'000'000'000;

TEST(CudaSupport, NamesEveryWayOutWhenMemoryIsShort) {
  const Model model = model_of({});
  const KvLayout kv{.type = KvType::kBf16, .window = 4096, .context = 8192, .rings = 33, .ring_slots = 4160};
  const GpuMemory memory{.available = 8 * kGigabyte,
                         .total = 9 * kGigabyte,
                         .weights = 16 * kGigabyte,
                         .cache = 2 * kGigabyte,
                         .work = kGigabyte};
  const std::string message = explain_out_of_memory(model, kv, memory);
  for (const char* part :
       {"8.00 GB of its 9.00 GB free, but 19.00 GB are needed", "16.00 GB for weights",
        "2.00 GB for the cache of 33 x 8192 positions", "1.00 GB of work space", "--context", "a smaller --chunk",
        "--parallel", "--kv-type q8 (a cache of 1.", "gemma-convert --type q8 (8.", " or q4 (", "or --device cpu"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
  EXPECT_THAT(message, Not(HasSubstr("\n")));
}

TEST(CudaSupport, NamesNoWayOutThatWasTakenAlready) {
  const KvLayout kv{.type = KvType::kQ8, .window = 4096, .context = 8192, .rings = 1, .ring_slots = 4160};
  const GpuMemory memory{.available = kGigabyte, .total = kGigabyte, .weights = kGigabyte, .work = kGigabyte / 2};
  const std::string q4 = explain_out_of_memory(model_of({kQ4, kQ8}), kv, memory);
  for (const char* part : {"--parallel", "--kv-type", "gemma-convert"}) EXPECT_THAT(q4, Not(HasSubstr(part)));
  const std::string q8 = explain_out_of_memory(model_of({kQ8, kQ8}), kv, memory);
  EXPECT_THAT(q8, HasSubstr("gemma-convert --type q4 ("));
  EXPECT_THAT(q8, Not(HasSubstr("--type q8")));
}

TEST(CudaSupport, NamesSmallerWeightsOnlyWhereTheyAreTheBulk) {
  const KvLayout kv{.type = KvType::kBf16, .window = 4096, .context = 8192, .rings = 1, .ring_slots = 4160};
  const GpuMemory memory{
      .available = kGigabyte, .total = kGigabyte, .weights = kGigabyte / 2, .cache = 2 * kGigabyte, .work = 0};
  EXPECT_THAT(explain_out_of_memory(model_of({}), kv, memory), Not(HasSubstr("gemma-convert")));
}

TEST(CudaSupport, NamesTheContextThatFitsWhereItIsStillALongOne) {
  const Model model = model_of({});
  const Config& config = model.config;
  const std::size_t position = 2 * static_cast<std::size_t>(config.kv_heads) *
                               head_bytes(KvType::kBf16, config.head_dim) *
                               static_cast<std::size_t>(config.global_layer_count());
  const KvLayout kv{.type = KvType::kBf16, .window = 4096, .context = 8192, .rings = 1, .ring_slots = 4160};
  GpuMemory memory{.available = kGigabyte, .total = kGigabyte, .cache = kGigabyte, .work = 1000 * position};
  EXPECT_THAT(explain_out_of_memory(model, kv, memory), HasSubstr("--context 7168 (which fits)"));
  memory.work = 5000 * position;
  EXPECT_THAT(explain_out_of_memory(model, kv, memory), HasSubstr("a shorter --context"));
}

}  // namespace
}  // namespace gemma
