#include "support/naive.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "device/attention_mask.h"
#include "model/dequantise.h"

namespace gemma::naive {
namespace {

std::vector<float> row_of(const Matrix& matrix, int index) {
  std::vector<float> row(static_cast<std::size_t>(matrix.columns));
  dequantise(matrix, index, row);
  return row;
}

Vector multiply(const Matrix& matrix, const Vector& x) {
  Vector y;
  for (int row = 0; row < matrix.rows; ++row) {
    double sum = 0;
    const std::vector<float> weights = row_of(matrix, row);
    for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(weights[i]) * x[i];
    y.push_back(sum);
  }
  return y;
}

Vector rms_norm(const Vector& x, std::span<const float> weight, double eps, double offset) {
  double sum = 0;
  for (double value : x) sum += value * value;
  const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  Vector y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * (offset + static_cast<double>(weight[i])));
  return y;
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

double soft_cap(double x, std::optional<double> cap) { return cap ? *cap * std::tanh(x / *cap) : x; }

Vector part(const Vector& x, int first, int count) { return {x.begin() + first, x.begin() + first + count}; }

void add(Vector& x, const Vector& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// Turns the pair (i, i + head_dim / 2) of every head by the angle position * theta^(-2i / head_dim).
Vector rotate(Vector x, int position, int head_dim, double theta) {
  const auto half = static_cast<std::size_t>(head_dim / 2);
  for (std::size_t head = 0; head < x.size(); head += 2 * half) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = position * std::pow(theta, -2.0 * static_cast<double>(i) / head_dim);
      const double first = x[head + i];
      const double second = x[head + half + i];
      x[head + i] = first * std::cos(angle) - second * std::sin(angle);
      x[head + half + i] = second * std::cos(angle) + first * std::sin(angle);
    }
  }
  return x;
}

Vector rounded(Vector x, int head_dim, KvType type) {
  if (type == KvType::kBf16) {
    for (double& value : x) value = to_float(to_bf16(static_cast<float>(value)));
  }
  if (type == KvType::kQ8) {
    for (std::size_t head = 0; head < x.size(); head += static_cast<std::size_t>(head_dim)) {
      const std::span<double> values(&x[head], static_cast<std::size_t>(head_dim));
      double max = 0;
      for (double value : values) max = std::max(max, std::abs(value));
      for (double& value : values) value = max == 0 ? 0 : std::nearbyint(value * 127 / max) * max / 127;
    }
  }
  return x;
}

/// Of each group of columns, to multiples of 2^-10 of the power of two that the largest has in it.
Vector rounded_to_whole(Vector x) {
  constexpr auto kColumns = static_cast<std::size_t>(kGroupColumns);
  for (std::size_t first = 0; first < x.size(); first += kColumns) {
    const std::span<double> group(&x[first], std::min(kColumns, x.size() - first));
    double largest = 0;
    for (double value : group) largest = std::max(largest, std::abs(value));
    if (largest == 0) continue;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 10);
    for (double& value : group) value = std::nearbyint(value / unit) * unit;
  }
  return x;
}

}  // namespace

Vector softmax(const Vector& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  Vector weights;
  double sum = 0;
  for (double score : scores) {
    weights.push_back(std::exp(score - largest));
    sum += weights.back();
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

Vectors attend(const Attention& attention, const Vectors& q, const Vectors& k, const Vectors& v, double* largest) {
  const int positions = static_cast<int>(q.size());
  const int group = attention.heads / attention.kv_heads;
  const int dim = attention.head_dim;
  Vectors out(q.size(), Vector(static_cast<std::size_t>(attention.heads * dim), 0.0));
  for (int query = 0; query < positions; ++query) {
    for (int head = 0; head < attention.heads; ++head) {
      const double* const q_head = &q[query][head * dim];
      const int kv_offset = head / group * dim;
      Vector scores;
      for (int key = 0; key < positions; ++key) {
        double score = 0;
        for (int i = 0; i < dim; ++i) score += q_head[i] * k[key][kv_offset + i];
        if (largest != nullptr && is_visible(query, key, attention.window))
          *largest = std::max(*largest, std::abs(score));
        const double mask = attention_mask(query, key, attention.window);
        scores.push_back(soft_cap(score, attention.softcap) + mask);
      }
      const Vector weights = softmax(scores);
      for (int key = 0; key < positions; ++key) {
        for (int i = 0; i < dim; ++i) out[query][head * dim + i] += weights[key] * v[key][kv_offset + i];
      }
    }
  }
  return out;
}

Answer forward(const Model& model, std::span<const int> tokens, const Departures& departures) {
  const Config& config = model.config;
  const Weights& weights = model.weights;
  const auto norm = [&](const Vector& values, std::span<const float> weight) {
    return rms_norm(values, weight, config.rms_norm_eps, departures.norm_offset);
  };
  const RoundedInputs rounding = departures.rounded_inputs;
  const auto product = [&](const Matrix& matrix, const Vector& input) {
    Vector taken = input;
    if (rounding != RoundedInputs::kNone) taken = rounded(taken, config.head_dim, KvType::kBf16);
    if (rounding == RoundedInputs::kWholeNumbers) taken = rounded_to_whole(taken);
    return multiply(matrix, taken);
  };
  const auto product_of_norm = [&](const Matrix& matrix, const Vector& values, std::span<const float> weight) {
    Vector taken = norm(values, weight);
    if (rounding == RoundedInputs::kBf16) taken = rounded(taken, config.head_dim, KvType::kBf16);
    if (rounding == RoundedInputs::kWholeNumbers) taken = rounded_to_whole(taken);
    return multiply(matrix, taken);
  };

  Answer answer;
  Vectors x;
  for (int token : tokens) {
    Vector& embedding = x.emplace_back();
    for (float value : row_of(weights.embed, token))
      embedding.push_back(static_cast<double>(value) * config.embedding_scale());
  }

  for (int layer = 0; layer < config.layer_count(); ++layer) {
    const LayerWeights& w = weights.layers[layer];

    Vectors q, k, v;
    for (int position = 0; position < static_cast<int>(x.size()); ++position) {
      const Vector qkv = product_of_norm(w.qkv, x[position], w.attention_norm);
      q.push_back(rotate(part(qkv, 0, config.query_size()), position + departures.query_shift, config.head_dim,
                         config.rope_theta));
      for (double& value : q.back()) value /= std::sqrt(config.query_pre_attn_scalar);
      const Vector key = part(qkv, config.query_size(), config.kv_size());
      k.push_back(
          rounded(rotate(key, position, config.head_dim, config.rope_theta), config.head_dim, departures.cache));
      v.push_back(rounded(part(qkv, config.query_size() + config.kv_size(), config.kv_size()), config.head_dim,
                          departures.cache));
    }

    Attention attention;
    attention.heads = config.heads;
    attention.kv_heads = config.kv_heads;
    attention.head_dim = config.head_dim;
    attention.window = config.layers[layer] == LayerKind::kLocal ? config.window : kNoWindow;
    attention.softcap = config.attention_softcap;
    const Vectors mixed = attend(attention, q, k, v, &answer.largest_score);

    for (std::size_t position = 0; position < x.size(); ++position) {
      add(x[position], norm(product(w.attention_out, mixed[position]), w.attention_post_norm));

      const Vector gate_up = product_of_norm(w.gate_up, x[position], w.mlp_norm);
      const Vector gate = part(gate_up, 0, config.intermediate_size);
      Vector hidden = part(gate_up, config.intermediate_size, config.intermediate_size);
      for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= gelu(gate[i]);
      add(x[position], norm(product(w.down, hidden), w.mlp_post_norm));
    }
  }

  for (const Vector& last : x) {
    Vector& logits = answer.logits.emplace_back(product_of_norm(weights.head, last, weights.final_norm));
    for (double& logit : logits) logit = soft_cap(logit, config.final_softcap);
  }
  return answer;
}

}  // namespace gemma::naive
