#include "device/cpu/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "device/attention_mask.h"
#include "unit/cpu/every_target.h"

namespace gemma {
namespace {

class AttentionKernel : public EveryTarget {};
GEMMA_ON_EVERY_TARGET(AttentionKernel);

/// Random keys and values of one span in the cache's layout, and queries in its last positions.
class Span {
 public:
  Span(int head_dim, int queries, KvType type) : head_dim_(head_dim) {
    std::mt19937 random(static_cast<unsigned>(head_dim + queries));
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int count) {
      for (int i = 0; i < count; ++i)
        x.push_back(type == KvType::kBf16 ? to_float(to_bf16(normal(random))) : normal(random));
    };
    fill(keys_, kSpanPositions * head_dim);
    fill(values_, kSpanPositions * head_dim);
    fill(q_, queries * head_dim);
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      keys_as_bf16_.push_back(to_bf16(keys_[i]));
      values_as_bf16_.push_back(to_bf16(values_[i]));
    }
    if (type == KvType::kQ8) quantise();
    for (int i = 0; i < queries; ++i) queries_.push_back({&q_[static_cast<std::size_t>(i) * head_dim], kFirst + 3 * i});
    const std::size_t block = static_cast<std::size_t>(kPagePositions) * head_dim;
    for (int b = 0; b < kSpanPositions / kPagePositions; ++b) {
      if (type == KvType::kQ8) {
        blocks_.push_back({&quantised_[2 * b * part_bytes()], &quantised_[(2 * b + 1) * part_bytes()]});
      } else if (type == KvType::kF32) {
        blocks_.push_back({reinterpret_cast<const std::byte*>(&keys_[b * block]),
                           reinterpret_cast<const std::byte*>(&values_[b * block])});
      } else {
        blocks_.push_back({reinterpret_cast<const std::byte*>(&keys_as_bf16_[b * block]),
                           reinterpret_cast<const std::byte*>(&values_as_bf16_[b * block])});
      }
    }
  }

  float key(int position, int i) const {
    return keys_[(position / kPagePositions * head_dim_ + i) * kPagePositions + position % kPagePositions];
  }
  float value(int position, int i) const { return values_[position * head_dim_ + i]; }
  const std::vector<Query>& queries() const { return queries_; }

  /// Attention of some of the queries: for each head_dim elements, its maximum and its sum.
  std::vector<float> attend(const AttentionShape& shape, int first, int count) const {
    std::vector<float> results(static_cast<std::size_t>(count) * (head_dim_ + 2));
    std::vector<AttentionSums> sums(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) sums[i].out = &results[static_cast<std::size_t>(i) * (head_dim_ + 2)];
    attend_span(shape, std::span(queries_).subspan(first, count), blocks_, 0, sums);
    for (int i = 0; i < count; ++i) {
      sums[i].out[head_dim_] = sums[i].max;
      sums[i].out[head_dim_ + 1] = sums[i].sum;
    }
    return results;
  }

  static constexpr int kFirst = 180;  // position of the first query

 private:
  std::size_t part_bytes() const { return kPagePositions * head_bytes(KvType::kQ8, head_dim_); }

  /// Rounds keys and values to whole numbers of steps, which differ from position to position, and lays them out.
  void quantise() {
    quantised_.resize(2 * kSpanPositions / kPagePositions * part_bytes());
    const std::size_t codes = static_cast<std::size_t>(kPagePositions) * head_dim_;
    for (int p = 0; p < kSpanPositions; ++p) {
      std::byte* keys = &quantised_[2 * (p / kPagePositions) * part_bytes()];
      std::byte* values = keys + part_bytes();
      const int in_block = p % kPagePositions;
      const float key_scale = 0.04f + 0.001f * static_cast<float>(p % 5);
      const float value_scale = 0.04f + 0.001f * static_cast<float>(p % 7);
      reinterpret_cast<float*>(keys + codes)[in_block] = key_scale;
      reinterpret_cast<float*>(values + codes)[in_block] = value_scale;
      for (int i = 0; i < head_dim_; ++i) {
        float& k = keys_[(p / kPagePositions * head_dim_ + i) * kPagePositions + in_block];
        float& v = values_[p * head_dim_ + i];
        const float key_code = std::clamp(std::round(k / key_scale), -127.0f, 127.0f);
        const float value_code = std::clamp(std::round(v / value_scale), -127.0f, 127.0f);
        k = key_scale * key_code;
        v = value_scale * value_code;
        keys[i * kPagePositions + in_block] = static_cast<std::byte>(static_cast<std::int8_t>(key_code));
        values[in_block * head_dim_ + i] = static_cast<std::byte>(static_cast<std::int8_t>(value_code));
      }
    }
  }

  int head_dim_;
  std::vector<float> keys_;    // [blocks, head_dim, kPagePositions]
  std::vector<float> values_;  // [kSpanPositions, head_dim]
  std::vector<float> q_;
  std::vector<bf16> keys_as_bf16_;
  std::vector<bf16> values_as_bf16_;
  std::vector<std::byte> quantised_;  // [blocks, 2 (keys and values), part_bytes()]
  std::vector<Query> queries_;
  std::vector<KvBlock> blocks_;
};

TEST_P(AttentionKernel, AgreesWithSoftmaxInDoublePrecision) {
  for (int head_dim : {16, 48, 80, 256}) {
    for (KvType type : {KvType::kF32, KvType::kBf16, KvType::kQ8}) {
      for (float cap : {0.0f, 20.0f}) {
        for (int window : {1, 70, 128, kNoWindow}) {
          const Span span(head_dim, 13, type);
          const std::vector<float> results = span.attend({head_dim, cap, window, type}, 0, 13);
          for (int r = 0; r < 13; ++r) {
            const int position = span.queries()[r].position;
            double sum = 0;
            std::vector<double> out(head_dim);
            for (int p = 0; p < kSpanPositions; ++p) {
              if (!is_visible(position, p, window)) continue;
              double score = 0;
              for (int i = 0; i < head_dim; ++i) score += static_cast<double>(span.queries()[r].q[i]) * span.key(p, i);
              if (cap > 0) score = cap * std::tanh(score / cap);
              sum += std::exp(score);
              for (int i = 0; i < head_dim; ++i) out[i] += std::exp(score) * span.value(p, i);
            }
            const float* row = &results[static_cast<std::size_t>(r) * (head_dim + 2)];
            for (int i = 0; i < head_dim; ++i) {
              // Scores of some tens in magnitude carry errors of some 1e-6 into the exponents; values are of order one.
              ASSERT_NEAR(row[i] / row[head_dim + 1], out[i] / sum, 3e-5)
                  << "head size " << head_dim << ", window " << window;
            }
          }
        }
      }
    }
  }
}

TEST_P(AttentionKernel, GivesAQueryTheSameBitsAloneAndAmongOthers) {
  constexpr int kHeadDim = 80;
  for (KvType type : {KvType::kF32, KvType::kQ8}) {
    const Span span(kHeadDim, 20, type);
    for (int window : {5, 100, kNoWindow}) {
      const AttentionShape shape{kHeadDim, 50, window, type};
      const std::vector<float> all = span.attend(shape, 0, 20);
      for (int count : {1, 2, 5, 7}) {
        for (int first = 0; first + count <= 20; ++first) {
          const std::vector<float> some = span.attend(shape, first, count);
          ASSERT_EQ(0, std::memcmp(some.data(), &all[static_cast<std::size_t>(first) * (kHeadDim + 2)],
                                   some.size() * sizeof(float)))
              << count << " queries from " << first << ", window " << window;
        }
      }
    }
  }
}

TEST_P(AttentionKernel, LeavesTheSumsOfAQueryThatSeesNothingClear) {
  const Span span(16, 1, KvType::kF32);
  const Query late{span.queries()[0].q, 2 * kSpanPositions};
  std::vector<float> out(16, 1.0f);
  const std::vector<float> keys(16 * kPagePositions, 3.0f);
  const KvBlock block{reinterpret_cast<const std::byte*>(keys.data()), reinterpret_cast<const std::byte*>(keys.data())};
  AttentionSums sums{1, 1, out.data()};
  attend_span({16, 50, 10, KvType::kF32}, {&late, 1}, {&block, 1}, 0, {&sums, 1});
  EXPECT_EQ(sums.max, kMaskedScore);
  EXPECT_EQ(sums.sum, 0);
  EXPECT_EQ(out, std::vector<float>(16, 0.0f));
}

TEST(AttentionSumsOf, AMergeWithEmptySumsChangesNothing) {
  std::vector<float> a = {1.5f, -2.5f};
  std::vector<float> nothing = {0, 0};
  AttentionSums sums{3, 2, a.data()};
  AttentionSums empty{0, 0, nothing.data()};
  clear_sums(empty, 2);
  merge_sums(sums, empty, 2);
  EXPECT_EQ(sums.max, 3);
  EXPECT_EQ(sums.sum, 2);
  EXPECT_EQ(a, (std::vector<float>{1.5f, -2.5f}));
  merge_sums(empty, sums, 2);
  EXPECT_EQ(empty.max, 3);
  EXPECT_EQ(empty.sum, 2);
  EXPECT_EQ(nothing, a);
}

}  // namespace
}  // namespace gemma
