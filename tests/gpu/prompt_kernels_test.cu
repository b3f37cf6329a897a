// The prompt family of kernels against naive arithmetic in double. Outputs lie in memory that was filled with
// not-a-number before, with a poisoned rest behind them that must stay so.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "activation.cuh"
#include "cuda_error.h"
#include "device/attention_mask.h"
#include "embed.cuh"
#include "gemm.h"
#include "gemma/error.h"
#include "kv_commit.cuh"
#include "kv_quantise.cuh"
#include "norm.cuh"
#include "prompt_attention.cuh"
#include "rope.cuh"
#include "wgmma_gemm.cuh"

namespace gemma {
namespace {

using Bf16 = __nv_bfloat16;

constexpr double kHalfUlp = 0x1p-8;  // the largest relative error of rounding to bf16, which has 8 significant bits
constexpr std::size_t kRest = 64;    // poisoned elements behind an output
constexpr unsigned char kPoison = 0xff;

float to_float(Bf16 x) { return __bfloat162float(x); }

const Bf16 kPoisonedBf16 = std::bit_cast<Bf16>(std::uint16_t{0xffff});

/// GPU memory that starts as not-a-number.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size) : size_(size) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes()));
    memory_.reset(static_cast<T*>(memory));
    poison();
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { upload(values); }

  T* get() const { return memory_.get(); }
  void upload(const std::vector<T>& values) {
    check_cuda(cudaMemcpy(get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    check_cuda(cudaDeviceSynchronize());  // the copy may still be on its way, and the tests' streams do not wait for it
  }
  /// Makes all of it not-a-number again.
  void poison() const {
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaMemset(get(), kPoison, bytes()));
    check_cuda(cudaDeviceSynchronize());
  }
  /// All that is in the memory, without looking at the rest behind it.
  std::vector<T> download() const {
    std::vector<T> values(size_);
    check_cuda(cudaDeviceSynchronize());
    check_cuda(cudaMemcpy(values.data(), get(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  /// Whether nothing was written behind the end.
  bool has_clean_rest() const {
    std::vector<unsigned char> rest(kRest * sizeof(T));
    check_cuda(cudaMemcpy(rest.data(), get() + size_, rest.size(), cudaMemcpyDeviceToHost));
    return std::all_of(rest.begin(), rest.end(), [](unsigned char byte) { return byte == kPoison; });
  }

 private:
  struct Free {
    void operator()(T* memory) const { cudaFree(memory); }
  };
  std::size_t bytes() const { return (size_ + kRest) * sizeof(T); }

  std::size_t size_;
  std::unique_ptr<T, Free> memory_;
};

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

std::vector<float> random_floats(std::size_t size, std::mt19937& random, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<Bf16> random_bf16(std::size_t size, std::mt19937& random, float deviation = 1) {
  std::vector<Bf16> values(size);
  std::normal_distribution<float> normal(0, deviation);
  for (Bf16& value : values) value = __float2bfloat16_rn(normal(random));
  return values;
}

template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

template <class T>
std::span<const T> part(const std::vector<T>& values, std::size_t first, std::size_t count) {
  return std::span<const T>(values).subspan(first, count);
}

std::size_t z(int value) { return static_cast<std::size_t>(value); }

// --- embedding ---

TEST(PromptEmbed, ScalesTheRowsOfTheTokens) {
  std::mt19937 random(1);
  const Stream stream;
  for (const int hidden : {32, 1028, 2304, 4608}) {
    const int vocab = 50;
    const float scale = 48.25f;
    const auto embed = random_bf16(z(vocab) * hidden, random);
    for (const int rows : {1, 3, 200}) {
      std::vector<int> tokens(z(rows));
      for (int& token : tokens) token = static_cast<int>(random() % vocab);
      tokens.back() = vocab - 1;
      const Buffer<Bf16> table(embed);
      const Buffer<int> token(tokens);
      const Buffer<float> x(z(rows) * hidden);
      launch_embed(token.get(), table.get(), WeightType::kBf16, scale, rows, hidden, x.get(), stream);
      const auto got = x.download();
      for (int row = 0; row < rows; ++row) {
        for (int i = 0; i < hidden; ++i) {
          ASSERT_EQ(got[z(row) * hidden + i], to_float(embed[z(tokens[z(row)]) * hidden + i]) * scale)
              << "row " << row << " of " << rows << ", element " << i << " of " << hidden;
        }
      }
      EXPECT_TRUE(x.has_clean_rest());
    }
  }
}

// --- norms ---

std::vector<double> naive_norm(const float* x, const std::vector<float>& weight, float eps) {
  double squares = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) squares += double{x[i]} * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(weight.size()) + eps);
  std::vector<double> out(weight.size());
  for (std::size_t i = 0; i < weight.size(); ++i) out[i] = x[i] * scale * (1 + double{weight[i]});
  return out;
}

// float32 sums of a few thousand squares, a root good to 2 units, three products: well below 2e-6 of the value.
constexpr double kNormError = 2e-6;

void expect_bf16(Bf16 got, double expected, double error, const std::string& where) {
  ASSERT_NEAR(to_float(got), expected, std::abs(expected) * (kHalfUlp + error) + 1e-30) << where;
}

class PromptNorm : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(HiddenSizes, PromptNorm, testing::Values(4, 32, 1020, 1024, 2304, 3584, 4608, 10000));

TEST_P(PromptNorm, NormalizesAllRowsOrThoseOfAList) {
  const int hidden = GetParam();
  constexpr int kRows = 37;
  constexpr float kEps = 1e-6f;
  std::mt19937 random(2);
  const Stream stream;
  auto x = random_floats(z(kRows) * hidden, random, 20);
  std::fill_n(x.begin() + 5 * hidden, hidden, 0.0f);   // nothing but eps under the root
  std::fill_n(x.begin() + 6 * hidden, hidden, 1e-4f);  // where eps counts
  const auto weight = random_floats(z(hidden), random);
  const Buffer<float> x_gpu(x), weight_gpu(weight);

  const Buffer<Bf16> out(z(kRows) * hidden);
  launch_normalize(x_gpu.get(), nullptr, weight_gpu.get(), kEps, kRows, hidden, out.get(), stream);
  const auto all = out.download();
  for (int row = 0; row < kRows && !HasFatalFailure(); ++row) {
    const auto expected = naive_norm(&x[z(row) * hidden], weight, kEps);
    for (int i = 0; i < hidden; ++i) {
      expect_bf16(all[z(row) * hidden + i], expected[z(i)], kNormError,
                  "row " + std::to_string(row) + ", element " + std::to_string(i));
    }
  }
  EXPECT_TRUE(out.has_clean_rest());

  const std::vector<int> index{36, 0, 7, 7, 5};
  const Buffer<int> index_gpu(index);
  const Buffer<Bf16> listed(index.size() * z(hidden));
  launch_normalize(x_gpu.get(), index_gpu.get(), weight_gpu.get(), kEps, static_cast<int>(index.size()), hidden,
                   listed.get(), stream);
  const auto few = listed.download();
  for (std::size_t i = 0; i < index.size(); ++i) {
    EXPECT_TRUE(same_bits(part(few, i * hidden, hidden), part(all, z(index[i]) * hidden, hidden)))
        << "entry " << i << " of the list";
  }
  EXPECT_TRUE(listed.has_clean_rest());
}

TEST_P(PromptNorm, AddsANormalizedRowAndNormalizesTheSum) {
  const int hidden = GetParam();
  constexpr int kRows = 19;
  constexpr float kEps = 1e-6f;
  std::mt19937 random(3);
  const Stream stream;
  const auto x = random_floats(z(kRows) * hidden, random, 30);
  const auto y = random_floats(z(kRows) * hidden, random, 0.1f);
  const auto post = random_floats(z(hidden), random), next = random_floats(z(hidden), random);
  const Buffer<float> y_gpu(y), post_gpu(post), next_gpu(next);

  Buffer<float> x_gpu(x);
  const Buffer<Bf16> out(z(kRows) * hidden);
  launch_add_normalized(y_gpu.get(), post_gpu.get(), next_gpu.get(), kEps, kRows, hidden, x_gpu.get(), out.get(),
                        stream);
  const auto sums = x_gpu.download();
  const auto normalized = out.download();
  for (int row = 0; row < kRows && !HasFatalFailure(); ++row) {
    const auto added = naive_norm(&y[z(row) * hidden], post, kEps);
    const auto expected = naive_norm(&sums[z(row) * hidden], next, kEps);
    for (int i = 0; i < hidden; ++i) {
      const std::size_t at = z(row) * hidden + i;
      const double sum = x[at] + added[z(i)];
      ASSERT_NEAR(sums[at], sum, kNormError * std::abs(added[z(i)]) + 0x1p-23 * std::abs(sum))
          << "row " << row << ", element " << i;
      expect_bf16(normalized[at], expected[z(i)], kNormError,
                  "row " + std::to_string(row) + ", element " + std::to_string(i));
    }
  }
  EXPECT_TRUE(x_gpu.has_clean_rest());
  EXPECT_TRUE(out.has_clean_rest());

  const Buffer<float> alone(x);
  launch_add_normalized(y_gpu.get(), post_gpu.get(), nullptr, kEps, kRows, hidden, alone.get(), nullptr, stream);
  EXPECT_TRUE(same_bits<float>(alone.download(), sums)) << "without a next norm";

  const Buffer<float> one(std::vector<float>(x.begin() + 4 * hidden, x.begin() + 5 * hidden));
  const Buffer<Bf16> one_out(z(hidden));
  launch_add_normalized(y_gpu.get() + 4 * hidden, post_gpu.get(), next_gpu.get(), kEps, 1, hidden, one.get(),
                        one_out.get(), stream);
  EXPECT_TRUE(same_bits<float>(one.download(), part(sums, 4 * z(hidden), z(hidden)))) << "a row alone";
  EXPECT_TRUE(same_bits<Bf16>(one_out.download(), part(normalized, 4 * z(hidden), z(hidden)))) << "a row alone";
}

// --- rotary embedding ---

TEST(PromptRope, TurnsQueriesAndKeysAndLeavesValues) {
  std::mt19937 random(4);
  const Stream stream;
  constexpr int kRows = 13, kPositions = 500;
  constexpr float kQueryScale = 0.0825f;
  for (const int head_dim : {16, 32, 48, 64, 80, 128, 256}) {
    for (const auto& [heads, kv_heads] : {std::pair{1, 1}, std::pair{8, 4}, std::pair{6, 2}, std::pair{16, 2}}) {
      const int half = head_dim / 2;
      const int width = (heads + 2 * kv_heads) * head_dim;
      std::vector<float2> table(z(kPositions) * half);
      for (int p = 0; p < kPositions; ++p) {
        for (int i = 0; i < half; ++i) {
          const double angle = p * std::pow(10000.0, -2.0 * i / head_dim);
          table[z(p) * half + i] = {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
        }
      }
      std::vector<int> positions(kRows);
      for (int& p : positions) p = static_cast<int>(random() % kPositions);
      positions.front() = 0;
      positions.back() = kPositions - 1;
      const auto qkv = random_floats(z(kRows) * width, random, 3);
      const Buffer<float> qkv_gpu(qkv);
      const Buffer<int> position_gpu(positions);
      const Buffer<float2> table_gpu(table);
      const Buffer<Bf16> q(z(kRows) * heads * head_dim), k(z(kRows) * kv_heads * head_dim),
          v(z(kRows) * kv_heads * head_dim);
      launch_rope(
          qkv_gpu.get(),
          {position_gpu.get(), table_gpu.get(), kQueryScale, heads, kv_heads, head_dim, q.get(), k.get(), v.get()},
          kRows, stream);
      const auto q_got = q.download(), k_got = k.download(), v_got = v.download();
      for (int row = 0; row < kRows; ++row) {
        for (int head = 0; head < heads + 2 * kv_heads; ++head) {
          const float* in = &qkv[z(row) * width + z(head) * head_dim];
          for (int i = 0; i < head_dim; ++i) {
            const std::string where = "row " + std::to_string(row) + ", head " + std::to_string(head) + " of " +
                                      std::to_string(heads) + " + 2 * " + std::to_string(kv_heads) + ", element " +
                                      std::to_string(i) + " of " + std::to_string(head_dim);
            if (head >= heads + kv_heads) {
              const float got = to_float(v_got[(z(row) * kv_heads + head - heads - kv_heads) * head_dim + i]);
              ASSERT_EQ(got, to_float(__float2bfloat16_rn(in[i]))) << where;
              continue;
            }
            const float2 turn = table[z(positions[z(row)]) * half + i % half];
            const double other = i < half ? -double{in[i + half]} : double{in[i - half]};
            double expected = in[i] * double{turn.x} + other * turn.y;
            double size = std::abs(in[i] * turn.x) + std::abs(other * turn.y);  // of what float32 rounds
            const bool is_query = head < heads;
            if (is_query) expected *= kQueryScale, size *= kQueryScale;
            const float got = is_query ? to_float(q_got[(z(row) * heads + head) * head_dim + i])
                                       : to_float(k_got[(z(row) * kv_heads + head - heads) * head_dim + i]);
            ASSERT_NEAR(got, expected, kHalfUlp * std::abs(expected) + 0x1p-22 * size) << where;
          }
        }
      }
      EXPECT_TRUE(q.has_clean_rest() && k.has_clean_rest() && v.has_clean_rest());
    }
  }
}

// --- activation and soft cap ---

TEST(PromptActivation, IsGeluOfTheGateTimesUp) {
  std::mt19937 random(5);
  const Stream stream;
  for (const int intermediate : {4, 32, 1028, 9216}) {
    for (const int rows : {1, 5}) {
      auto gate_up = random_floats(z(rows) * 2 * intermediate, random, 3);
      gate_up[0] = 40;   // gelu is the identity here
      gate_up[1] = -40;  // and 0 here
      gate_up[2] = 0;
      const Buffer<float> in(gate_up);
      const Buffer<Bf16> out(z(rows) * intermediate);
      launch_activation(in.get(), rows, intermediate, out.get(), intermediate, stream);
      const auto got = out.download();
      for (int row = 0; row < rows; ++row) {
        for (int i = 0; i < intermediate; ++i) {
          const double gate = gate_up[z(row) * 2 * intermediate + i], up = gate_up[(z(row) * 2 + 1) * intermediate + i];
          const double gelu =
              0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate)));
          // 1 + tanh cancels for negative gates: what is left of float32 there is relative to 1.
          ASSERT_NEAR(to_float(got[z(row) * intermediate + i]), gelu * up,
                      kHalfUlp * std::abs(gelu * up) + 1e-6 * std::abs(gate * up))
              << "row " << row << ", element " << i << " of " << intermediate << ": gate " << gate << ", up " << up;
        }
      }
      EXPECT_TRUE(out.has_clean_rest());
    }
  }
}

TEST(PromptSoftCap, CapsLogitsInPlaceAndNothingBetweenRows) {
  std::mt19937 random(6);
  const Stream stream;
  for (const float cap : {30.0f, 0.0f}) {
    for (const int vocab : {1, 257, 1024, 50001}) {
      constexpr int kRows = 3;
      const std::size_t pitch = z(vocab) + 7;
      auto logits = random_floats(kRows * pitch, random, 40);
      logits[0] = 1e6f;
      const Buffer<float> gpu(logits);
      launch_soft_cap(gpu.get(), cap, kRows, vocab, pitch, stream);
      check_cuda(cudaStreamSynchronize(stream));
      const auto got = gpu.download();
      for (std::size_t i = 0; i < logits.size(); ++i) {
        if (cap == 0 || i % pitch >= z(vocab)) {
          ASSERT_EQ(got[i], logits[i]) << "element " << i % pitch << " of row " << i / pitch;
        } else {
          // tanhf is good to 2 units.
          ASSERT_NEAR(got[i], cap * std::tanh(double{logits[i]} / cap), cap * 3e-7)
              << "element " << i % pitch << " of row " << i / pitch;
        }
      }
      EXPECT_TRUE(gpu.has_clean_rest());
    }
  }
}

// --- the cache, on the host ---

struct CacheShape {
  bool is_local;
  int kv_heads, head_dim;
  int ring_slots;  // local
  int max_pages;   // global
  int units;       // rings or pages
  int layers_of_kind = 3;
  int index_in_kind = 1;

  int unit_slots() const { return is_local ? ring_slots : 64; }
  std::size_t size() const { return z(units) * layers_of_kind * 2 * kv_heads * unit_slots() * head_dim; }
  std::size_t at(int unit, bool is_value, int kv_head, int slot) const {
    return ((((z(unit) * layers_of_kind + index_in_kind) * 2 + is_value) * kv_heads + kv_head) * unit_slots() + slot) *
           head_dim;
  }
  LayerCache on_gpu(void* memory, const int* page_table) const {
    return {memory,     is_local, index_in_kind, layers_of_kind, kv_heads, head_dim, is_local ? ring_slots : 0,
            page_table, max_pages};
  }

  // With 8 bits, in bytes.
  std::size_t quantised_size() const { return size() / head_dim * (head_dim + 4); }
  std::size_t code_at(int unit, bool is_value, int kv_head, int slot) const {
    return at(unit, is_value, kv_head, slot / 64 * 64) / head_dim * (head_dim + 4) + z(slot % 64) * head_dim;
  }
  std::size_t scale_at(int unit, bool is_value, int kv_head, int slot) const {
    return code_at(unit, is_value, kv_head, slot / 64 * 64) + z(64) * head_dim + z(slot % 64) * sizeof(float);
  }
  /// Room for one layer's keys and values in bf16.
  CacheShape expanded() const {
    CacheShape one = *this;
    one.layers_of_kind = 1;
    one.index_in_kind = 0;
    return one;
  }
};

/// A key or value in 8 bits, as the CPU's cache keeps it.
struct Quantised {
  std::vector<std::int8_t> codes;
  float scale;

  explicit Quantised(std::span<const Bf16> x) {
    float largest = 0;
    for (const Bf16 value : x) largest = std::max(largest, std::abs(to_float(value)));
    if (largest < 1e-36f) largest = 0;
    const float inverse = largest > 0 ? 127 / largest : 0;
    scale = largest / 127;
    for (const Bf16 value : x) codes.push_back(static_cast<std::int8_t>(std::nearbyint(to_float(value) * inverse)));
  }
  Bf16 value(std::size_t i) const { return __float2bfloat16_rn(scale * static_cast<float>(codes[i])); }
};

/// The memory of QuantisedRows.
struct QuantisedRowsOnGpu {
  Buffer<std::int8_t> k, v;
  Buffer<float> k_scale, v_scale;

  QuantisedRowsOnGpu(int rows, int kv_heads, int head_dim)
      : k(z(rows) * kv_heads * head_dim),
        v(z(rows) * kv_heads * head_dim),
        k_scale(z(rows) * kv_heads),
        v_scale(z(rows) * kv_heads) {}
  QuantisedRows get() const { return {k.get(), v.get(), k_scale.get(), v_scale.get()}; }
  bool has_clean_rest() const {
    return k.has_clean_rest() && v.has_clean_rest() && k_scale.has_clean_rest() && v_scale.has_clean_rest();
  }
};

/// Pages dealt out at random; entries that no text needs point outside of all memory.
struct PageTable {
  std::vector<int> entries;
  int pages = 0;

  PageTable(const std::vector<int>& lengths, int max_pages, std::mt19937& random) {
    for (const int length : lengths) pages += (length + 63) / 64;
    std::vector<int> free(z(pages));
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    for (const int length : lengths) {
      for (int i = 0; i < max_pages; ++i) {
        entries.push_back(i < (length + 63) / 64 ? free.back() : 1 << 28);
        if (i < (length + 63) / 64) free.pop_back();
      }
    }
  }
};

TEST(PromptCommit, WritesTheNewestPositionsAndNothingElse) {
  std::mt19937 random(7);
  const Stream stream;
  // First row, rows, position, ring, row of the page table. The second is longer than a ring.
  const std::vector<PromptSequence> sequences{
      {7, 70, 1000, 2, 1}, {77, 200, 61, 0, 2}, {0, 1, 64, 3, 0}, {1, 6, 125, 1, 3}};
  constexpr int kRows = 277, kMaxPages = 20;
  for (const bool is_local : {true, false}) {
    for (const auto& [kv_heads, head_dim] : {std::pair{1, 48}, std::pair{4, 256}, std::pair{3, 16}}) {
      const PageTable table({200, 1100, 300, 200}, kMaxPages, random);
      const CacheShape shape{is_local, kv_heads, head_dim, 128, kMaxPages, is_local ? 4 : table.pages};
      const auto k = random_bf16(z(kRows) * kv_heads * head_dim, random),
                 v = random_bf16(z(kRows) * kv_heads * head_dim, random);

      std::vector<Bf16> expected(shape.size(), kPoisonedBf16);
      for (const PromptSequence& sequence : sequences) {
        for (int row = 0; row < sequence.rows; ++row) {  // the newest last
          const int position = sequence.position + row;
          const int unit = is_local ? sequence.ring : table.entries[z(sequence.page_row * kMaxPages + position / 64)];
          for (int head = 0; head < kv_heads; ++head) {
            const std::size_t from = (z(sequence.first_row + row) * kv_heads + head) * head_dim;
            const int slot = position % shape.unit_slots();
            std::copy_n(k.begin() + from, head_dim, expected.begin() + shape.at(unit, false, head, slot));
            std::copy_n(v.begin() + from, head_dim, expected.begin() + shape.at(unit, true, head, slot));
          }
        }
      }
      const Buffer<Bf16> k_gpu(k), v_gpu(v), memory(shape.size());
      const Buffer<int> table_gpu(table.entries);
      const Buffer<PromptSequence> sequences_gpu(sequences);
      launch_kv_commit(k_gpu.get(), v_gpu.get(), shape.on_gpu(memory.get(), table_gpu.get()), sequences_gpu.get(),
                       static_cast<int>(sequences.size()), 200, stream);
      const auto got = memory.download();
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(std::bit_cast<std::uint16_t>(got[i]), std::bit_cast<std::uint16_t>(expected[i]))
            << (is_local ? "rings" : "pages") << ", head size " << head_dim << ": element " << i % head_dim
            << " of slot " << i / head_dim % shape.unit_slots() << ", KV head "
            << i / head_dim / shape.unit_slots() % kv_heads << ", value "
            << i / head_dim / shape.unit_slots() / kv_heads % 2 << ", layer "
            << i / head_dim / shape.unit_slots() / kv_heads / 2 % 3;
      }
      EXPECT_TRUE(memory.has_clean_rest());
    }
  }
}

// --- a cache in 8 bits ---

TEST(PromptQuantise, RoundsAsTheCpuDoesAndLeavesWhatCodesStandFor) {
  std::mt19937 random(13);
  const Stream stream;
  constexpr int kRows = 5;
  for (const int head_dim : {16, 48, 64, 112, 128, 240, 256}) {
    for (const int kv_heads : {1, 3}) {
      auto k = random_bf16(z(kRows) * kv_heads * head_dim, random, 3),
           v = random_bf16(z(kRows) * kv_heads * head_dim, random, 1e-3f);
      const auto set = [&](std::vector<Bf16>& values, int head, const auto& value_of) {
        for (int i = 0; i < head_dim; ++i) values[z(head) * head_dim + i] = __float2bfloat16_rn(value_of(i));
      };
      set(k, 0, [](int) { return 0.0f; });
      set(v, 0, [](int i) { return 3e38f * static_cast<float>(i % 3 - 1); });
      set(k, 1, [](int) { return 1e-37f; });                          // too small to be told from zeros
      set(v, 1, [](int i) { return i == 0 ? 127 : 0.5f + i % 60; });  // halves, which are rounded to even
      set(k, 2, [](int i) { return i == 3 ? NAN : static_cast<float>(i); });
      set(v, 2, [](int i) { return i == 5 ? -INFINITY : static_cast<float>(i); });
      const Buffer<Bf16> k_gpu(k), v_gpu(v);
      const QuantisedRowsOnGpu rows(kRows, kv_heads, head_dim);
      launch_kv_quantise(k_gpu.get(), v_gpu.get(), kRows, kv_heads, head_dim, rows.get(), stream);
      check_cuda(cudaStreamSynchronize(stream));
      const auto codes = rows.k.download(), value_codes = rows.v.download();
      const auto scales = rows.k_scale.download(), value_scales = rows.v_scale.download();
      const auto k_got = k_gpu.download(), v_got = v_gpu.download();
      for (int head = 0; head < kRows * kv_heads; ++head) {
        for (const bool is_value : {false, true}) {
          const std::size_t first = z(head) * head_dim;
          const std::string where = std::string(is_value ? "value " : "key ") + std::to_string(head) + ", head size " +
                                    std::to_string(head_dim);
          const float scale = (is_value ? value_scales : scales)[z(head)];
          if (head == 2) {  // all of it must show that something has gone wrong
            ASSERT_TRUE(std::isnan(scale)) << where;
            continue;
          }
          const Quantised expected(part(is_value ? v : k, first, z(head_dim)));
          ASSERT_EQ(scale, expected.scale) << where;
          for (std::size_t i = 0; i < z(head_dim); ++i) {
            ASSERT_EQ((is_value ? value_codes : codes)[first + i], expected.codes[i]) << where << ", element " << i;
            ASSERT_EQ(to_float((is_value ? v_got : k_got)[first + i]), to_float(expected.value(i)))
                << where << ", element " << i;
          }
        }
      }
      EXPECT_TRUE(rows.has_clean_rest() && k_gpu.has_clean_rest() && v_gpu.has_clean_rest());
    }
  }
}

TEST(PromptQuantise, CommitsCodesAndScalesAndExpandsWhatAChunkSees) {
  std::mt19937 random(14);
  const Stream stream;
  const std::vector<PromptSequence> sequences{
      {7, 70, 1000, 2, 1}, {77, 200, 61, 0, 2}, {0, 1, 64, 3, 0}, {1, 6, 125, 1, 3}};
  constexpr int kRows = 277, kMaxPages = 20, kSlots = 128, kWindow = 100;
  for (const bool is_local : {true, false}) {
    for (const auto& [kv_heads, head_dim] : {std::pair{1, 48}, std::pair{4, 256}, std::pair{3, 16}}) {
      const PageTable table({200, 1100, 300, 200}, kMaxPages, random);
      const CacheShape shape{is_local, kv_heads, head_dim, kSlots, kMaxPages, is_local ? 4 : table.pages};
      const auto k = random_bf16(z(kRows) * kv_heads * head_dim, random),
                 v = random_bf16(z(kRows) * kv_heads * head_dim, random);
      std::vector<unsigned char> expected(shape.quantised_size(), kPoison);
      std::vector<Bf16> expected_expanded(shape.expanded().size(), kPoisonedBf16);
      std::vector<PromptSequence> later;  // each goes on behind what has been committed
      for (const PromptSequence& sequence : sequences) {
        later.push_back(sequence);
        later.back().position += sequence.rows;
        const int seen = is_local ? std::max(0, later.back().position - kWindow + 1) : 0;
        for (int row = 0; row < sequence.rows; ++row) {  // the newest last
          const int position = sequence.position + row;
          const int unit = is_local ? sequence.ring : table.entries[z(sequence.page_row * kMaxPages + position / 64)];
          const int slot = position % shape.unit_slots();
          for (int i = 0; i < 2 * kv_heads; ++i) {
            const bool is_value = i >= kv_heads;
            const int head = i % kv_heads;
            const Quantised quantised(
                part(is_value ? v : k, (z(sequence.first_row + row) * kv_heads + head) * head_dim, z(head_dim)));
            std::memcpy(&expected[shape.code_at(unit, is_value, head, slot)], quantised.codes.data(), z(head_dim));
            std::memcpy(&expected[shape.scale_at(unit, is_value, head, slot)], &quantised.scale, sizeof(float));
            if (position < seen) continue;
            for (std::size_t dim = 0; dim < z(head_dim); ++dim)
              expected_expanded[shape.expanded().at(unit, is_value, head, slot) + dim] = quantised.value(dim);
          }
        }
      }
      const Buffer<Bf16> k_gpu(k), v_gpu(v), expanded(shape.expanded().size());
      const Buffer<unsigned char> memory(shape.quantised_size());
      const Buffer<int> table_gpu(table.entries);
      const Buffer<PromptSequence> sequences_gpu(sequences), later_gpu(later);
      const QuantisedRowsOnGpu rows(kRows, kv_heads, head_dim);
      const int count = static_cast<int>(sequences.size());
      const LayerCache cache = shape.on_gpu(memory.get(), table_gpu.get());
      launch_kv_quantise(k_gpu.get(), v_gpu.get(), kRows, kv_heads, head_dim, rows.get(), stream);
      launch_kv_commit(rows.get(), cache, sequences_gpu.get(), count, 200, stream);
      check_cuda(cudaStreamSynchronize(stream));
      ASSERT_EQ(memory.download(), expected) << (is_local ? "rings" : "pages") << ", head size " << head_dim;
      EXPECT_TRUE(memory.has_clean_rest());

      const int window = is_local ? kWindow : kNoWindow;
      launch_kv_expand(cache, shape.expanded().on_gpu(expanded.get(), table_gpu.get()), window, later_gpu.get(), count,
                       most_blocks_before_chunk(1070, window), stream);
      check_cuda(cudaStreamSynchronize(stream));
      const auto got = expanded.download();
      for (std::size_t i = 0; i < got.size(); ++i) {
        // Positions that the chunk does not see may be there or not.
        if (std::isnan(to_float(expected_expanded[i]))) continue;
        ASSERT_EQ(to_float(got[i]), to_float(expected_expanded[i])) << "element " << i << ", head size " << head_dim;
      }
      EXPECT_TRUE(expanded.has_clean_rest());
    }
  }
}

TEST(PromptQuantise, FindsRoomForAllBlocksThatAreExpanded) {
  for (int window = 1; window < 200; ++window) {
    int most = 0;
    for (int position = 0; position < 500; ++position) {
      // Those of the positions before the chunk that its first row sees.
      const int first = std::max(0, position - window + 1);
      if (first < position) most = std::max(most, (position - 1) / 64 - first / 64 + 1);
      ASSERT_GE(most_blocks_before_chunk(position, window), most) << "position " << position << ", window " << window;
      ASSERT_LE(most_blocks_before_chunk(position, window), most + 1) << "position " << position;
    }
  }
  EXPECT_EQ(most_blocks_before_chunk(129, kNoWindow), 3);
}

// --- attention ---

struct Case {
  int head_dim;
  int kv_heads;
  int group;   // query heads of a KV head
  int window;  // kNoWindow: a global layer
  float softcap = 50;
  float deviation = 3;      // of the scores before the cap
  bool uses_wgmma = false;  // where the GPU can
  int length = 300;
  bool is_quantised = false;  // the cache is kept in 8 bits

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "head size " << c.head_dim << ", " << c.group << " x " << c.kv_heads << " heads, window " << c.window
               << ", cap " << c.softcap << ", scores " << c.deviation << (c.uses_wgmma ? ", wgmma" : "")
               << (c.is_quantised ? ", q8" : "");
  }
};

/// One sequence's queries, keys and values from its first position to its last.
struct Text {
  int length;
  std::vector<Bf16> q, k, v;
};

/// Rows of a text that are worked on together.
using Chunks = std::vector<int>;

class PromptAttentionTest : public testing::TestWithParam<Case> {
 protected:
  int heads() const { return GetParam().kv_heads * GetParam().group; }
  std::size_t q_width() const { return z(heads()) * GetParam().head_dim; }
  std::size_t kv_width() const { return z(GetParam().kv_heads) * GetParam().head_dim; }

  Text make_text(int length, std::mt19937& random) const {
    const float q_deviation = GetParam().deviation / std::sqrt(static_cast<float>(GetParam().head_dim));
    return {length, random_bf16(length * q_width(), random, q_deviation), random_bf16(length * kv_width(), random),
            random_bf16(length * kv_width(), random)};
  }

  /// Keys or values as every row sees them.
  std::vector<Bf16> cached(const std::vector<Bf16>& values) const {
    if (!GetParam().is_quantised) return values;
    const std::size_t head_dim = z(GetParam().head_dim);
    std::vector<Bf16> rounded;
    for (std::size_t first = 0; first < values.size(); first += head_dim) {
      const Quantised head(part(values, first, head_dim));
      for (std::size_t i = 0; i < head_dim; ++i) rounded.push_back(head.value(i));
    }
    return rounded;
  }

  struct Expected {
    double value;
    double size;  // the weighted mean of the values' sizes, which errors of the weights are relative to
  };

  std::vector<Expected> naive(const Text& text) const {
    const Case& c = GetParam();
    const auto as_floats = [](const std::vector<Bf16>& values) {
      std::vector<float> floats(values.size());
      std::transform(values.begin(), values.end(), floats.begin(), [](Bf16 value) { return to_float(value); });
      return floats;
    };
    const auto queries = as_floats(text.q), keys = as_floats(cached(text.k)), values = as_floats(cached(text.v));
    std::vector<Expected> out(text.length * q_width());
    std::vector<double> weights(z(text.length));
    for (int row = 0; row < text.length; ++row) {
      for (int head = 0; head < heads(); ++head) {
        const float* q = &queries[row * q_width() + z(head) * c.head_dim];
        const std::size_t kv_offset = z(head / c.group) * c.head_dim;
        double largest = -INFINITY, sum = 0;
        for (int key = 0; key <= row; ++key) {
          weights[z(key)] = -INFINITY;
          if (row - key >= c.window) continue;
          double score = 0;
          for (int i = 0; i < c.head_dim; ++i) score += double{q[i]} * keys[key * kv_width() + kv_offset + i];
          if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
          weights[z(key)] = score;
          largest = std::max(largest, score);
        }
        for (int key = 0; key <= row; ++key) sum += weights[z(key)] = std::exp(weights[z(key)] - largest);
        Expected* to = &out[row * q_width() + z(head) * c.head_dim];
        for (int key = 0; key <= row; ++key) {
          if (weights[z(key)] == 0) continue;
          for (int i = 0; i < c.head_dim; ++i) {
            const double value = values[key * kv_width() + kv_offset + i];
            to[i].value += weights[z(key)] / sum * value;
            to[i].size += weights[z(key)] / sum * std::abs(value);
          }
        }
      }
    }
    return out;
  }

  /// Runs texts side by side, each in its chunks, a chunk of each at a time, with commits in between.
  std::vector<std::vector<Bf16>> run(const std::vector<Text>& texts, const std::vector<Chunks>& chunks,
                                     std::mt19937& random) const {
    const Case& c = GetParam();
    const bool is_local = c.window != kNoWindow;
    std::vector<int> lengths;
    for (const Text& text : texts) lengths.push_back(text.length);
    const int longest = *std::max_element(lengths.begin(), lengths.end());
    const int max_pages = (longest + 63) / 64 + 2;
    const PageTable table(lengths, max_pages, random);
    const int ring_slots = (std::min(c.window, longest) + 63) / 64 * 64;
    const CacheShape shape{is_local,   c.kv_heads, c.head_dim,
                           ring_slots, max_pages,  is_local ? static_cast<int>(texts.size()) + 1 : table.pages};
    const Buffer<unsigned char> memory(c.is_quantised ? shape.quantised_size() : shape.size() * sizeof(Bf16));
    const Buffer<Bf16> expanded_memory(c.is_quantised ? shape.expanded().size() : 0);
    const Buffer<int> table_gpu(table.entries);
    const Stream stream;

    std::vector<std::vector<Bf16>> results;
    for (const Text& text : texts) results.emplace_back(text.q.size());
    std::vector<int> done(texts.size(), 0);
    std::size_t steps = 0;
    for (const Chunks& of_text : chunks) steps = std::max(steps, of_text.size());

    for (std::size_t step = 0; step < steps; ++step) {
      std::vector<PromptSequence> sequences;
      std::vector<std::size_t> text_of;
      std::vector<Bf16> q, k, v;
      int rows = 0, max_rows = 0, longest_past = 0;
      for (std::size_t t = 0; t < texts.size(); ++t) {
        if (step >= chunks[t].size()) continue;
        const int count = chunks[t][step];
        const auto append = [&](std::vector<Bf16>& to, const std::vector<Bf16>& from, std::size_t width) {
          to.insert(to.end(), from.begin() + done[t] * width, from.begin() + (done[t] + count) * width);
        };
        append(q, texts[t].q, q_width());
        append(k, texts[t].k, kv_width());
        append(v, texts[t].v, kv_width());
        sequences.push_back({rows, count, done[t], static_cast<int>(texts.size() - t), static_cast<int>(t)});
        text_of.push_back(t);
        rows += count;
        max_rows = std::max(max_rows, count);
        longest_past = std::max(longest_past, done[t]);
      }
      std::vector<std::size_t> order(sequences.size());  // descriptors need not be in the order of the rows
      std::iota(order.begin(), order.end(), 0u);
      std::shuffle(order.begin(), order.end(), random);
      std::vector<PromptSequence> shuffled;
      for (const std::size_t i : order) shuffled.push_back(sequences[i]);

      const Buffer<PromptSequence> sequences_gpu(shuffled);
      const Buffer<Bf16> q_gpu(q), k_gpu(k), v_gpu(v), out(q.size());
      const LayerCache cache = shape.on_gpu(memory.get(), table_gpu.get());
      const int count = static_cast<int>(sequences.size());
      const QuantisedRowsOnGpu codes(c.is_quantised ? rows : 0, c.kv_heads, c.head_dim);
      LayerCache seen = cache;
      if (c.is_quantised) {
        expanded_memory.poison();
        seen = shape.expanded().on_gpu(expanded_memory.get(), table_gpu.get());
        launch_kv_quantise(k_gpu.get(), v_gpu.get(), rows, c.kv_heads, c.head_dim, codes.get(), stream);
        launch_kv_expand(cache, seen, c.window, sequences_gpu.get(), count,
                         most_blocks_before_chunk(longest_past, c.window), stream);
      }
      launch_prompt_attention({heads(), c.window, c.softcap, q_gpu.get(), k_gpu.get(), v_gpu.get(), seen,
                               sequences_gpu.get(), out.get(), c.uses_wgmma && has_wgmma()},
                              count, max_rows, stream);
      if (c.is_quantised) {
        launch_kv_commit(codes.get(), cache, sequences_gpu.get(), count, max_rows, stream);
      } else {
        launch_kv_commit(k_gpu.get(), v_gpu.get(), cache, sequences_gpu.get(), count, max_rows, stream);
      }
      check_cuda(cudaStreamSynchronize(stream));
      const auto got = out.download();
      EXPECT_TRUE(out.has_clean_rest());
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const std::size_t t = text_of[i];
        std::copy_n(got.begin() + sequences[i].first_row * q_width(), sequences[i].rows * q_width(),
                    results[t].begin() + done[t] * q_width());
        done[t] += sequences[i].rows;
      }
    }
    EXPECT_EQ(done, lengths);
    return results;
  }

  static Chunks even_chunks(int length, int size) {
    Chunks chunks(z(length / size), size);
    if (length % size != 0) chunks.push_back(length % size);
    return chunks;
  }

  static Chunks random_chunks(int length, int largest, std::mt19937& random) {
    Chunks chunks;
    for (int rest = length; rest > 0; rest -= chunks.back())
      chunks.push_back(std::min(rest, 1 + static_cast<int>(random() % largest)));
    return chunks;
  }

  /// Each weight is rounded to bf16, and the sum of the rounded weights divides them: twice half a unit of the mean
  /// size at the most; then the result is rounded. Errors of the float32 scores are relative errors of weights and of
  /// their sum: about 1e-5 of the scores' deviation each.
  void expect_near(const std::vector<Bf16>& got, const std::vector<Expected>& expected) const {
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(to_float(got[i]), expected[i].value,
                  (2 * kHalfUlp + 4e-5 * GetParam().deviation) * expected[i].size +
                      kHalfUlp * std::abs(expected[i].value) + 1e-30)
          << "row " << i / q_width() << ", head " << i % q_width() / GetParam().head_dim << ", element "
          << i % GetParam().head_dim;
    }
  }

  void expect_same(const std::vector<Bf16>& got, const std::vector<Bf16>& whole, const std::string& how) const {
    for (std::size_t row = 0; row * q_width() < whole.size(); ++row) {
      ASSERT_TRUE(same_bits(part(got, row * q_width(), q_width()), part(whole, row * q_width(), q_width())))
          << how << ": row " << row << " differs from its bits in one chunk";
    }
  }
};

std::vector<Case> attention_cases() {
  std::vector<Case> cases;
  int n = 0;
  for (const int head_dim : {32, 48, 64, 80, 128, 256}) {
    for (const int window : {1, 2, 7, 64, 100, 128, 1000, kNoWindow}) {
      constexpr int kGroups[] = {1, 2, 4, 8};
      const int group = kGroups[(n + n / 8) % 4];  // another one for the same window at the next head size
      cases.push_back({head_dim, group == 8 ? 1 : 2, group, window});
      ++n;
    }
    cases.push_back({head_dim, 1, 2, 100, 50, 40});  // where the soft cap bites
    cases.push_back({head_dim, 1, 2, kNoWindow, 0, 3});
  }
  for (const int head_dim : {64, 128, 256}) {
    for (const int window : {1, 2, 7, 64, 100, 128, 1000, kNoWindow}) {
      constexpr int kGroups[] = {2, 4, 8};
      const int group = kGroups[n++ % 3];
      cases.push_back({head_dim, group == 8 ? 1 : 2, group, window, 50, 3, /*uses_wgmma=*/true});
    }
    cases.push_back({head_dim, 1, 2, 100, 50, 40, true});
    cases.push_back({head_dim, 1, 2, kNoWindow, 30, 100, true});
    cases.push_back({head_dim, 1, 2, kNoWindow, 0, 3, true});    // which it has no kernel for
    cases.push_back({head_dim, 1, 2, kNoWindow, 100, 3, true});  // nor for this
    cases.push_back({head_dim, 1, 1, 100, 50, 3, true});         // nor for this
    cases.push_back({head_dim, 1, 2, 700, 50, 3, true, 1500});
    cases.push_back({head_dim, 1, 2, kNoWindow, 50, 3, true, 1500});
  }
  for (const int head_dim : {48, 64, 128, 256}) {
    for (const int window : {1, 2, 64, 100, 128, kNoWindow}) {
      for (const bool uses_wgmma : {false, true})
        cases.push_back({head_dim, 2, n++ % 2 == 0 ? 2 : 4, window, 50, 3, uses_wgmma, 300, /*is_quantised=*/true});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Shapes, PromptAttentionTest, testing::ValuesIn(attention_cases()));

TEST_P(PromptAttentionTest, MatchesNaiveArithmeticHoweverATextIsCut) {
  std::mt19937 random(8);
  const std::vector<Text> texts{make_text(GetParam().length, random)};
  const int length = texts[0].length;
  const auto whole = run(texts, {{length}}, random)[0];
  expect_near(whole, naive(texts[0]));
  Chunks ones(80, 1);
  ones.insert(ones.begin(), 60);
  ones.push_back(length - 140);
  expect_same(run(texts, {ones}, random)[0], whole, "chunks of 60, 80 times 1, 160");
  expect_same(run(texts, {even_chunks(length, 7)}, random)[0], whole, "chunks of 7");
  expect_same(run(texts, {even_chunks(length, 64)}, random)[0], whole, "chunks of 64");
  expect_same(run(texts, {{63, 1, 65, 130, 2, length - 261}}, random)[0], whole, "chunks of 63, 1, 65, 130, 2, ...");
  expect_same(run(texts, {random_chunks(length, 100, random)}, random)[0], whole, "random chunks");
}

TEST_P(PromptAttentionTest, KeepsSequencesApart) {
  std::mt19937 random(9);
  std::vector<Text> texts;
  std::vector<std::vector<Bf16>> whole;
  for (const int length : {150, 1, 64, 257}) {
    texts.push_back(make_text(length, random));
    whole.push_back(run({texts.back()}, {{length}}, random)[0]);
    if (length <= 64) expect_near(whole.back(), naive(texts.back()));
  }
  std::vector<Chunks> chunks;
  for (const Text& text : texts) chunks.push_back(random_chunks(text.length, 90, random));
  const auto together = run(texts, chunks, random);
  for (std::size_t t = 0; t < texts.size(); ++t)
    expect_same(together[t], whole[t], "text " + std::to_string(t) + " of four");
}

TEST(PromptAttentionSizes, RefusesHeadsThatItHasNoKernelFor) {
  const Stream stream;
  for (const int head_dim : {0, 24, 257, 272}) {
    PromptAttention attention{};
    attention.heads = 1;
    attention.cache.kv_heads = 1;
    attention.cache.head_dim = head_dim;
    EXPECT_THROW(launch_prompt_attention(attention, 1, 1, stream), Error) << head_dim;
  }
}

// --- matrix products ---

/// outputs, columns, whether by kernels of our own where the GPU can
class PromptGemm : public testing::TestWithParam<std::tuple<int, int, bool>> {
 protected:
  int outputs() const { return std::get<0>(GetParam()); }
  int columns() const { return std::get<1>(GetParam()); }
  bool uses_wgmma() const { return std::get<2>(GetParam()) && has_wgmma(); }
};
INSTANTIATE_TEST_SUITE_P(Shapes, PromptGemm,
                         testing::Values(std::tuple{64, 64, true}, std::tuple{96, 32, true}, std::tuple{260, 72, true},
                                         std::tuple{4096, 2304, true}, std::tuple{2304, 2048, true},
                                         std::tuple{18432, 2304, true}, std::tuple{2304, 9216, true},
                                         std::tuple{259, 72, false}, std::tuple{2304, 2048, false},
                                         std::tuple{2304, 9216, false}));

TEST_P(PromptGemm, GivesARowTheSameBitsAmongAnyNumberOfRows) {
  std::mt19937 random(10);
  const Stream stream;
  constexpr int kMaxRows = 1024;
  Gemm gemm(kMaxRows, uses_wgmma());
  const auto in = random_bf16(z(kMaxRows) * columns(), random), weights = random_bf16(z(outputs()) * columns(), random);
  const Buffer<Bf16> in_gpu(in), weights_gpu(weights);

  std::vector<float> most;
  for (const int rows : {kMaxRows, 1, 2, 3, 8, 17, 64, 100, 129, 300, 500, 1000}) {
    const Buffer<float> out(z(rows) * outputs());
    gemm.multiply(out.get(), in_gpu.get(), weights_gpu.get(), rows, outputs(), columns(), stream);
    const auto got = out.download();
    EXPECT_TRUE(out.has_clean_rest());
    if (most.empty()) most = got;
    ASSERT_TRUE(same_bits<float>(got, part(most, 0, got.size())))
        << rows << " rows differ from the same rows among " << kMaxRows;

    // The same rows at another place: the last of all.
    const Buffer<float> moved(z(rows) * outputs());
    gemm.multiply(moved.get(), in_gpu.get() + z(kMaxRows - rows) * columns(), weights_gpu.get(), rows, outputs(),
                  columns(), stream);
    ASSERT_TRUE(same_bits<float>(moved.download(), part(most, z(kMaxRows - rows) * outputs(), z(rows) * outputs())))
        << "the last " << rows << " rows differ from the same rows among " << kMaxRows;
  }
  for (int sample = 0; sample < 500; ++sample) {
    const int row = sample == 0 ? kMaxRows - 1 : static_cast<int>(random() % kMaxRows);
    const int output = sample == 0 ? outputs() - 1 : static_cast<int>(random() % outputs());
    double sum = 0, size = 0;
    for (int i = 0; i < columns(); ++i) {
      const double product =
          double{to_float(in[z(row) * columns() + i])} * to_float(weights[z(output) * columns() + i]);
      sum += product;
      size += std::abs(product);
    }
    // Tensor cores cut off instead of rounding: up to 2^-22 of the running sum, which is far below `size`, for every 16
    // columns.
    ASSERT_NEAR(most[z(row) * outputs() + output], sum, 6e-6 * size) << "row " << row << ", output " << output;
  }
  if (!uses_wgmma()) return;
  for (const int tile : wgmma_tiles<PlainProduct>()) {
    for (const int rows : {kMaxRows, 300, 1}) {
      const Buffer<float> out(z(rows) * outputs());
      launch_wgmma_product(PlainProduct{out.get(), outputs(), outputs()}, in_gpu.get(), weights_gpu.get(), rows,
                           columns(), tile, stream);
      ASSERT_TRUE(same_bits<float>(out.download(), part(most, 0, z(rows) * outputs())))
          << rows << " rows differ in tiles of " << tile << " outputs";
      EXPECT_TRUE(out.has_clean_rest());
    }
  }
}

TEST_P(PromptGemm, WritesPartsOfTheOutputsBesideEachOther) {
  std::mt19937 random(13);
  const Stream stream;
  constexpr int kRows = 130;
  if (outputs() % 4 != 0) return;  // parts begin at multiples of 4
  Gemm gemm(kRows, uses_wgmma());
  const Buffer<Bf16> in(random_bf16(z(kRows) * columns(), random)),
      weights(random_bf16(z(outputs()) * columns(), random));
  const Buffer<float> whole(z(kRows) * outputs()), out(z(kRows) * outputs());
  gemm.multiply(whole.get(), in.get(), weights.get(), kRows, outputs(), columns(), stream);
  const int cut = outputs() / 3 / 4 * 4;
  gemm.multiply(out.get(), in.get(), weights.get(), kRows, cut, columns(), stream, /*pitch=*/outputs());
  gemm.multiply(out.get() + cut, in.get(), weights.get() + z(cut) * columns(), kRows, outputs() - cut, columns(),
                stream, /*pitch=*/outputs());
  EXPECT_TRUE(out.has_clean_rest());
  const auto expected = whole.download(), found = out.download();
  if (uses_wgmma()) {
    EXPECT_TRUE(same_bits<float>(found, expected));
    return;
  }
  // cuBLASLt may take another algorithm for another shape. Sums of `columns` products of about 1.
  for (std::size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 6e-6 * columns()) << i;
}

TEST(PromptGemmEnds, AreThoseOfTheKernelsThatWouldFollow) {
  std::mt19937 random(12);
  const Stream stream;
  constexpr int kMaxRows = 700, kPositions = 900;
  for (const auto& [columns, heads, kv_heads, head_dim, intermediate] :
       {std::tuple{96, 2, 1, 128, 96}, std::tuple{72, 1, 1, 256, 1000}, std::tuple{64, 4, 2, 64, 32},
        std::tuple{2304, 8, 4, 256, 9216}, std::tuple{1024, 4, 2, 128, 2048}}) {
    Gemm gemm(kMaxRows);
    const int width = (heads + 2 * kv_heads) * head_dim;
    const auto in = random_bf16(z(kMaxRows) * columns, random);
    const Buffer<Bf16> in_gpu(in), gate_up(random_bf16(2 * z(intermediate) * columns, random, 0.1f)),
        qkv(random_bf16(z(width) * columns, random, 0.1f));
    const Buffer<float> scratch(std::max(2 * z(intermediate), z(width)) * kMaxRows);
    std::vector<int> positions(kMaxRows);
    for (int& position : positions) position = static_cast<int>(random() % kPositions);
    std::vector<float2> turns(z(kPositions) * head_dim / 2);
    for (std::size_t i = 0; i < turns.size(); ++i)
      turns[i] = {std::cos(static_cast<float>(i)), std::sin(static_cast<float>(i))};
    const Buffer<int> position(positions);
    const Buffer<float2> table(turns);

    for (const int rows : {kMaxRows, 1, 64, 129, 512}) {
      const auto where = std::to_string(rows) + " rows, " + std::to_string(columns) + " columns, ";
      const auto expect_all = [&](const auto& product, const auto& launch, const Buffer<Bf16>& weights,
                                  std::vector<const Buffer<Bf16>*> out,
                                  const std::vector<std::vector<Bf16>>& expected) {
        launch();
        for (std::size_t i = 0; i < out.size(); ++i) {
          EXPECT_TRUE(same_bits<Bf16>(out[i]->download(), expected[i])) << where << "result " << i;
          EXPECT_TRUE(out[i]->has_clean_rest());
        }
        using Product = std::decay_t<decltype(product)>;
        if (!has_wgmma()) return;
        for (const int tile : wgmma_tiles<Product>()) {
          if constexpr (std::is_same_v<Product, RopeProduct>) {
            if (head_dim % tile != 0) continue;
          }
          for (const Buffer<Bf16>* buffer : out) buffer->poison();
          launch_wgmma_product(product, in_gpu.get(), weights.get(), rows, columns, tile, stream);
          for (std::size_t i = 0; i < out.size(); ++i) {
            EXPECT_TRUE(same_bits<Bf16>(out[i]->download(), expected[i]))
                << where << "result " << i << " in tiles of " << tile;
            EXPECT_TRUE(out[i]->has_clean_rest());
          }
        }
      };

      const Buffer<Bf16> activated(z(rows) * intermediate);
      gemm.multiply(scratch.get(), in_gpu.get(), gate_up.get(), rows, 2 * intermediate, columns, stream);
      launch_activation(scratch.get(), rows, intermediate, activated.get(), intermediate, stream);
      const auto expected = activated.download();
      activated.poison();
      expect_all(GegluProduct{activated.get(), intermediate, intermediate},
                 [&] {
                   gemm.multiply_geglu(activated.get(), in_gpu.get(), gate_up.get(), rows, intermediate, columns,
                                       scratch.get(), stream);
                 },
                 gate_up, {&activated}, {expected});

      // Gates [0, cut) and [cut, intermediate), each with its ups, written beside each other.
      activated.poison();
      const int cut = intermediate / 2 / 8 * 8;
      const std::vector<Bf16> all = gate_up.download();
      const auto part_of = [&](int first, int count) {
        std::vector<Bf16> part_weights;
        for (const int half : {0, intermediate}) {
          const auto begin = all.begin() + static_cast<std::ptrdiff_t>(z(half + first) * columns);
          part_weights.insert(part_weights.end(), begin, begin + static_cast<std::ptrdiff_t>(z(count) * columns));
        }
        return part_weights;
      };
      for (const auto& [first, count] : {std::pair{0, cut}, std::pair{cut, intermediate - cut}}) {
        const Buffer<Bf16> weights(part_of(first, count));
        gemm.multiply_geglu(activated.get() + first, in_gpu.get(), weights.get(), rows, count, columns, scratch.get(),
                            stream, /*pitch=*/intermediate);
        check_cuda(cudaDeviceSynchronize());
      }
      EXPECT_TRUE(activated.has_clean_rest());
      if (gemm.uses_wgmma()) {
        EXPECT_TRUE(same_bits<Bf16>(activated.download(), expected)) << where << "in two parts";
      }

      const Buffer<Bf16> q(z(rows) * heads * head_dim), k(z(rows) * kv_heads * head_dim),
          v(z(rows) * kv_heads * head_dim);
      const RopeOutput output{position.get(), table.get(), 0.3f, heads, kv_heads, head_dim, q.get(), k.get(), v.get()};
      gemm.multiply(scratch.get(), in_gpu.get(), qkv.get(), rows, width, columns, stream);
      launch_rope(scratch.get(), output, rows, stream);
      const std::vector<std::vector<Bf16>> turned{q.download(), k.download(), v.download()};
      for (const Buffer<Bf16>* buffer : {&q, &k, &v}) buffer->poison();
      expect_all(
          RopeProduct{output},
          [&] { gemm.multiply_qkv(output, in_gpu.get(), qkv.get(), rows, columns, scratch.get(), stream); }, qkv,
          {&q, &k, &v}, turned);
    }
  }
}

// --- graphs ---

TEST(PromptKernels, CanBeCapturedInAGraph) {
  std::mt19937 random(11);
  const Stream stream;
  constexpr int kRows = 70, kHidden = 256, kHeads = 2, kHeadDim = 64, kSlots = 64, kWidth = 4 * kHeadDim;
  const Buffer<Bf16> embed(random_bf16(10 * kHidden, random)), weights(random_bf16(kWidth * kHidden, random));
  const Buffer<int> token(std::vector<int>(kRows, 3));
  std::vector<int> positions(kRows);
  std::iota(positions.begin(), positions.end(), 0);
  const Buffer<int> position(positions);
  const Buffer<float> norm(random_floats(kHidden, random));
  const Buffer<float2> table(std::vector<float2>(kRows * kHeadDim / 2, float2{0.8f, 0.6f}));
  const Buffer<PromptSequence> sequences(std::vector<PromptSequence>{{0, kRows, 0, 0, 0}});

  const bool is_hopper = has_wgmma();
  const auto run = [&](bool is_captured) {
    const Buffer<float> x(kRows * kHidden), qkv(kRows * kWidth);
    const Buffer<Bf16> h(kRows * kHidden), q(kRows * kHeads * kHeadDim), k(kRows * kHeadDim), v(kRows * kHeadDim),
        out(kRows * kHeads * kHeadDim);
    const Buffer<Bf16> memory(2 * kSlots * kHeadDim);
    const LayerCache cache{memory.get(), true, 0, 1, 1, kHeadDim, kSlots, nullptr, 0};
    Gemm gemm(kRows);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    if (is_captured) check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    launch_embed(token.get(), embed.get(), WeightType::kBf16, 2, kRows, kHidden, x.get(), stream);
    launch_normalize(x.get(), nullptr, norm.get(), 1e-6f, kRows, kHidden, h.get(), stream);
    gemm.multiply(qkv.get(), h.get(), weights.get(), kRows, kWidth, kHidden, stream);
    launch_rope(qkv.get(), {position.get(), table.get(), 0.1f, kHeads, 1, kHeadDim, q.get(), k.get(), v.get()}, kRows,
                stream);
    launch_prompt_attention({kHeads, 50, 50, q.get(), k.get(), v.get(), cache, sequences.get(), out.get(), is_hopper},
                            1, kRows, stream);
    launch_kv_commit(k.get(), v.get(), cache, sequences.get(), 1, kRows, stream);
    if (is_captured) {
      check_cuda(cudaStreamEndCapture(stream, &graph));
      check_cuda(cudaGraphInstantiate(&executable, graph, 0));
      check_cuda(cudaGraphLaunch(executable, stream));
    }
    check_cuda(cudaStreamSynchronize(stream));
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
    auto all = out.download();
    const auto cached = memory.download();
    all.insert(all.end(), cached.begin(), cached.end());
    return all;
  };
  const auto direct = run(false), captured = run(true);
  EXPECT_TRUE(same_bits<Bf16>(captured, direct));
  EXPECT_TRUE(std::none_of(direct.begin(), direct.end(), [](Bf16 value) { return std::isnan(to_float(value)); }));
}

}  // namespace
}  // namespace gemma
