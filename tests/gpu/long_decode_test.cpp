// Decoding far beyond the window: what local layers take does not grow with the text, neither memory nor time.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iostream>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "model/model_file.h"
#include "runtime/kv_cache.h"
#include "runtime/transformer.h"
#include "support/reader.h"

namespace gemma {
namespace {

constexpr int kTokens = 60'000;
constexpr int kBlock = 500;    // tokens that are timed together
constexpr int kCompared = 10;  // blocks at either end of the text

std::size_t free_memory() {
  std::size_t free = 0;
  std::size_t total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return free;
}

Config config_of(std::vector<LayerKind> layers) {
  Config config;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.vocab_size = 67;
  config.window = 256;
  config.context = kTokens;
  config.query_pre_attn_scalar = 64;
  config.layers = std::move(layers);
  return config;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// Draws token after token as the engine does: the next step is given out before this one's token is known.
class LongDecode {
 public:
  explicit LongDecode(const Model& model)
      : config_(model.config),
        device_(make_cuda_device(
            model, {.ordinal = 0, .max_rows = 1, .kv = plan_kv_cache(config_.window, kTokens, 1, KvType::kBf16)})),
        cache_(*device_),
        id_(cache_.create(kTokens)) {}
  ~LongDecode() { device_->finish(0); }
  LongDecode(const LongDecode&) = delete;
  LongDecode& operator=(const LongDecode&) = delete;

  /// Draws more tokens.
  /// @param first_token  of a text that has none yet
  /// @return milliseconds
  double draw(int count, int first_token) {
    const auto start = std::chrono::steady_clock::now();
    for (const int end = static_cast<int>(tokens_.size()) + count; static_cast<int>(tokens_.size()) < end;) {
      const int finished = static_cast<int>(tokens_.size());
      while (begun_ < std::min(finished + 2, kTokens)) begin(begun_ == 0 ? first_token : kSampledToken);
      device_->finish(begun_ - finished - 1);
      tokens_.push_back(answers_[static_cast<std::size_t>(finished % 2)].token);
    }
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

  /// What was drawn from each position.
  const std::vector<int>& tokens() const { return tokens_; }

 private:
  void begin(int token) {
    Batch batch;
    batch.sequences.push_back(cache_.extend(id_, 1));
    batch.rows.push_back(
        {.token = token, .position = batch.sequences[0].position, .sequence = 0, .kind = RowKind::kGenerated});
    batch.outputs.push_back({.row = 0, .sampling = Sampling{.temperature = 3.0f, .seed = 1}});
    Output& answer = answers_[static_cast<std::size_t>(begun_++ % 2)];
    begin_forward(config_, *device_, batch, {&answer, 1});
  }

  const Config& config_;
  std::unique_ptr<Device> device_;
  KvCache cache_;
  KvCache::Id id_;
  std::array<Output, 2> answers_;
  std::vector<int> tokens_;
  int begun_ = 0;
};

constexpr int kFirstToken = 5;

/// Milliseconds a token at both ends of the text.
struct Ends {
  double first, last;
};

/// Draws the whole text, and checks that memory stays as it is meanwhile.
Ends draw_all(LongDecode& decode) {
  decode.draw(kBlock, kFirstToken);  // what is made when it is first needed is made here
  const std::size_t free_at_start = free_memory();
  std::vector<double> times;
  while (static_cast<int>(decode.tokens().size()) < kTokens) times.push_back(decode.draw(kBlock, kFirstToken));
  EXPECT_EQ(free_memory(), free_at_start);
  return {median({times.begin(), times.begin() + kCompared}) / kBlock,
          median({times.end() - kCompared, times.end()}) / kBlock};
}

Ends draw_all(const Config& config) {
  const Model model = random_model(config, 1);
  LongDecode decode(model);
  return draw_all(decode);
}

TEST(LongDecode, TakesConstantMemoryAndTimeATokenWithLocalLayersAlone) {
  const Model model = random_model(config_of({LayerKind::kLocal, LayerKind::kLocal, LayerKind::kLocal}), 1);
  LongDecode decode(model);
  const auto [first, last] = draw_all(decode);
  std::cout << "milliseconds a token: " << first << " in the first " << kCompared * kBlock << ", " << last
            << " in the last\n";
  EXPECT_LT(last, 1.1 * first);

  // And the ring holds what it should: the text as a prompt has the same logits at its end.
  std::vector<int> text = decode.tokens();
  text.insert(text.begin(), kFirstToken);
  text.resize(kTokens);
  ReaderOptions options;
  options.context = kTokens;
  options.max_rows = 512;
  Reader reader(device_kinds().back(), model, options);
  const auto ending = [&](RowKind rows) {
    const KvCache::Id id = reader.cache().create(kTokens);
    const auto all = std::span<const int>(text);
    reader.skip(id, all.first(kTokens - 20), rows == RowKind::kPrompt ? 512 : 1, rows);
    const Logits logits = reader.read(id, all.last(20), rows == RowKind::kPrompt ? 512 : 1, rows);
    reader.cache().remove(id);
    return logits;
  };
  const Logits generated = ending(RowKind::kGenerated);
  naive::Vectors expected;
  for (const std::vector<float>& row : ending(RowKind::kPrompt)) expected.emplace_back(row.begin(), row.end());
  EXPECT_LT(largest_difference(generated, expected), device_kinds().back().tolerance);
}

TEST(LongDecode, TakesAsLongForLocalLayersAtTheEndOfATextAsAtItsBegin) {
  constexpr LayerKind kLocal = LayerKind::kLocal, kGlobal = LayerKind::kGlobal;
  const Ends usual = draw_all(config_of({kLocal, kGlobal, kLocal, kGlobal, kLocal, kGlobal}));
  const Ends global = draw_all(config_of({kGlobal, kGlobal, kGlobal}));
  const Ends local{usual.first - global.first, usual.last - global.last};
  std::cout << "milliseconds a token, three local and three global layers: " << usual.first << " at first, "
            << usual.last << " at last; of the global layers alone " << global.first << " and " << global.last
            << ", which leaves the local ones " << local.first << " and " << local.last << "\n";
  EXPECT_GT(global.last, global.first);
  EXPECT_LT(local.last, 1.2 * local.first);
}

TEST(LongDecode, KeepsRingsOfThePlannedBytesFor2BAtItsContext) {
  // 2B's cache with little else of it.
  Config config = config_of_shape("2b");
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.vocab_size = 67;
  const Model model = random_model(config, 1, /*cheap=*/true);
  const KvBytes bytes = kv_bytes(config, config.window, 8192, KvType::kBf16);
  const auto device_with = [&](int rings) {
    KvLayout kv = plan_kv_cache(config.window, 8192, 1, KvType::kBf16);
    kv.rings = rings;
    return make_cuda_device(model, {.ordinal = 0, .max_rows = 64, .kv = kv});
  };
  const auto one = device_with(1);
  EXPECT_EQ(one->slot_bytes() * static_cast<std::size_t>(one->kv_layout().ring_slots), bytes.local);

  // A second ring takes its bytes and little more, which is work space of the sequence.
  const std::size_t before = free_memory();
  const std::size_t one_planned = one->memory_bytes();
  const auto two = device_with(2);
  const std::size_t taken = before - free_memory();
  EXPECT_GE(two->memory_bytes() - one_planned, bytes.local);
  EXPECT_LT(two->memory_bytes() - one_planned, bytes.local + bytes.local / 50);
  EXPECT_GE(taken, 2 * bytes.local + bytes.global);
  EXPECT_LT(taken, two->memory_bytes() + (std::size_t{64} << 20)) << "allocations are rounded up";
}

}  // namespace
}  // namespace gemma
