#include "device/attention_mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/naive.h"

namespace gemma {
namespace {

// Each row is a query, each column a key: '.' is 0, 'x' is kMaskedScore.
std::vector<std::string> drawn_mask(int positions, int window) {
  std::vector<std::string> rows;
  for (int query = 0; query < positions; ++query) {
    std::string& row = rows.emplace_back();
    for (int key = 0; key < positions; ++key) {
      const float mask = attention_mask(query, key, window);
      row += mask == 0.0f ? '.' : mask == -2.3819763e38f ? 'x' : '?';
    }
  }
  return rows;
}

TEST(AttentionMask, OfWindowOneShowsOnlyTheTokenItself) {
  EXPECT_EQ(drawn_mask(4, 1), (std::vector<std::string>{".xxx", "x.xx", "xx.x", "xxx."}));
}

TEST(AttentionMask, OfWindowTwoShowsTheTokenAndItsPredecessor) {
  EXPECT_EQ(drawn_mask(5, 2), (std::vector<std::string>{".xxxx", "..xxx", "x..xx", "xx..x", "xxx.."}));
}

TEST(AttentionMask, OfWindowSevenHidesWhatIsSevenBack) {
  EXPECT_EQ(drawn_mask(9, 7), (std::vector<std::string>{".xxxxxxxx", "..xxxxxxx", "...xxxxxx", "....xxxxx", ".....xxxx",
                                                        "......xxx", ".......xx", "x.......x", "xx......."}));
}

TEST(AttentionMask, AsLongAsTheTextOrLongerIsMerelyCausal) {
  const std::vector<std::string> causal = {".xxxx", "..xxx", "...xx", "....x", "....."};
  EXPECT_EQ(drawn_mask(5, 5), causal);
  EXPECT_EQ(drawn_mask(5, 6), causal);
  EXPECT_EQ(drawn_mask(5, 128), causal);
  EXPECT_EQ(drawn_mask(5, kNoWindow), causal);
}

TEST(AttentionMask, OneShorterThanTheTextHidesOnlyTheFirstKeyFromTheLastQuery) {
  EXPECT_EQ(drawn_mask(5, 4), (std::vector<std::string>{".xxxx", "..xxx", "...xx", "....x", "x...."}));
}

TEST(AttentionMask, HasExactlyItsTwoValuesForEveryWindowQueryAndKey) {
  constexpr int kPositions = 300;
  for (int window : {1, 2, 7, 128, kPositions - 1, kPositions, kPositions + 1, kNoWindow}) {
    for (int query = 0; query < kPositions; ++query) {
      for (int key = 0; key < kPositions; ++key) {
        const bool is_in_future = key > query;
        const bool has_left_window = static_cast<long long>(key) + window <= query;
        const float expected = is_in_future || has_left_window ? -2.3819763e38f : 0.0f;
        ASSERT_EQ(attention_mask(query, key, window), expected)
            << "window " << window << ", query " << query << ", key " << key;
        ASSERT_EQ(is_visible(query, key, window), expected == 0.0f);
      }
    }
  }
}

TEST(AttentionMask, FirstVisibleIsTheLowestKeyThatTheMaskShows) {
  for (int window : {1, 2, 7, 128, kNoWindow}) {
    for (int query = 0; query < 300; ++query) {
      int lowest = 0;
      while (attention_mask(query, lowest, window) != 0.0f) ++lowest;
      ASSERT_EQ(first_visible(query, window), lowest) << "window " << window << ", query " << query;
    }
  }
}

TEST(AttentionMask, LeavesFullyMaskedRowsFiniteInFloat) {
  // A tile of 64 keys that have all left the window of 7, with scores as large as the soft cap lets them be.
  naive::Vector scores;
  for (int key = 0; key < 64; ++key) {
    const float score = key % 2 == 0 ? 50.0f : -50.0f;
    const float masked = score + attention_mask(200, key, 7);
    ASSERT_TRUE(std::isfinite(masked));
    scores.push_back(masked);
  }
  const float largest = static_cast<float>(*std::max_element(scores.begin(), scores.end()));
  for (double score : scores) ASSERT_EQ(std::exp(static_cast<float>(score) - largest), 1.0f);

  double sum = 0;
  for (double weight : naive::softmax(scores)) {
    ASSERT_TRUE(std::isfinite(weight));
    sum += weight;
  }
  EXPECT_NEAR(sum, 1, 1e-12);
}

TEST(NaiveAttention, OfOneVisibleKeyIsThatKeysValue) {
  naive::Attention attention;
  attention.heads = 2;
  attention.head_dim = 2;
  const naive::Vectors q = {{1, 2, 3, 4}, {5, 6, 7, 8}, {1, 0, 0, 1}};
  const naive::Vectors k = {{1, 1}, {2, -2}, {9, 9}};
  const naive::Vectors v = {{10, 20}, {30, 40}, {50, 60}};
  EXPECT_EQ(naive::attend(attention, q, k, v), (naive::Vectors{{10, 20, 10, 20}, {30, 40, 30, 40}, {50, 60, 50, 60}}));
}

TEST(NaiveAttention, MixesValuesBySoftCappedScores) {
  naive::Attention attention;
  attention.head_dim = 1;
  attention.window = 2;
  attention.softcap = 50;
  double largest = 0;
  const naive::Vectors out = naive::attend(attention, {{1}, {1}, {100}}, {{1}, {2}, {3}}, {{1}, {0}, {4}}, &largest);
  EXPECT_EQ(largest, 300);
  EXPECT_DOUBLE_EQ(out[0][0], 1);
  EXPECT_NEAR(out[1][0], 1 / (1 + std::exp(50 * std::tanh(2.0 / 50) - 50 * std::tanh(1.0 / 50))), 1e-15);
  // Without the cap, the second key would be e^100 times less likely than the third.
  const double ratio = std::exp(50 * std::tanh(200.0 / 50) - 50 * std::tanh(300.0 / 50));
  EXPECT_NEAR(out[2][0], 4 / (1 + ratio), 1e-12);
  EXPECT_NEAR(ratio, 0.967, 1e-3);
}

}  // namespace
}  // namespace gemma
