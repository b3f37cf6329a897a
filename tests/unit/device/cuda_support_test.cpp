#include "device/cuda_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/model_file.h"
#include "support/small_model.h"

namespace gemma {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

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

}  // namespace
}  // namespace gemma
