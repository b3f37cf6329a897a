#include "support/reader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "runtime/transformer.h"

namespace gemma {
namespace {

template <typename A, typename B>
double largest_difference_of(const A& a, const B& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t row = 0; row < a.size(); ++row) {
    if (a[row].size() != b[row].size()) return std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < a[row].size(); ++i) {
      const double difference = std::abs(static_cast<double>(a[row][i]) - static_cast<double>(b[row][i]));
      if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
      largest = std::max(largest, difference);
    }
  }
  return largest;
}

std::vector<Passage> cut(KvCache::Id sequence, std::span<const int> tokens, int chunk, RowKind kind) {
  std::vector<Passage> passages;
  for (; !tokens.empty(); tokens = tokens.subspan(passages.back().tokens.size())) {
    const auto part = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(chunk)));
    passages.push_back({sequence, {part.begin(), part.end()}, kind});
  }
  return passages;
}

}  // namespace

Reader::Reader(const DeviceKind& kind, const Model& model, const ReaderOptions& options) : model_(model) {
  CpuOptions device_options;
  device_options.threads = options.threads;
  device_options.max_rows = options.max_rows;
  const int window = options.window > 0 ? options.window : model.config.window;
  device_options.kv = plan_kv_cache(window, options.context, options.sequences, kind.cache);
  if (options.pages > 0) device_options.kv.pages = options.pages;
  device_ = kind.make(model, device_options);
  cache_ = std::make_unique<KvCache>(*device_);
}

std::vector<Logits> Reader::step(std::span<const Passage> passages) { return step(passages, true); }

std::vector<Logits> Reader::step(std::span<const Passage> passages, bool with_logits) {
  Batch batch;
  std::vector<Logits> logits;
  for (const Passage& passage : passages) {
    const int rows = static_cast<int>(passage.tokens.size());
    const int index = static_cast<int>(batch.sequences.size());
    SequenceRows sequence = cache_->extend(passage.sequence, rows);
    sequence.first_row = static_cast<int>(batch.rows.size());
    for (int i = 0; i < rows; ++i)
      batch.rows.push_back({passage.tokens[i], sequence.position + i, index, passage.kind});
    batch.sequences.push_back(sequence);
    if (with_logits) logits.emplace_back(rows, std::vector<float>(model_.config.vocab_size));
  }
  for (Logits& of_passage : logits) {
    for (std::vector<float>& of_row : of_passage) {
      OutputRow output;
      output.row = static_cast<int>(batch.outputs.size());
      output.logits = of_row;
      batch.outputs.push_back(output);
    }
  }
  forward(model_.config, *device_, batch);
  return logits;
}

Logits Reader::read(KvCache::Id sequence, std::span<const int> tokens, int chunk, RowKind kind) {
  Logits all;
  for (const Passage& passage : cut(sequence, tokens, chunk, kind)) append(all, step({&passage, 1}, true).front());
  return all;
}

void Reader::skip(KvCache::Id sequence, std::span<const int> tokens, int chunk, RowKind kind) {
  for (const Passage& passage : cut(sequence, tokens, chunk, kind)) step({&passage, 1}, false);
}

Logits read_alone(const DeviceKind& kind, const Model& model, std::span<const int> tokens, int chunk, int threads) {
  ReaderOptions options;
  options.threads = threads;
  options.max_rows = chunk;
  options.context = static_cast<int>(tokens.size());
  Reader reader(kind, model, options);
  return reader.read(reader.cache().create(options.context), tokens, chunk);
}

std::vector<int> random_tokens(int count, int vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int> tokens(static_cast<std::size_t>(count));
  for (int& token : tokens) token = static_cast<int>(random() % static_cast<unsigned>(vocab));
  return tokens;
}

double largest_difference(const Logits& a, const naive::Vectors& b) { return largest_difference_of(a, b); }

double largest_difference(const naive::Vectors& a, const naive::Vectors& b) { return largest_difference_of(a, b); }

double typical_difference(const Logits& a, const naive::Vectors& b) {
  if (!std::isfinite(largest_difference(a, b))) return std::numeric_limits<double>::infinity();
  double squares = 0;
  std::size_t count = 0;
  for (std::size_t row = 0; row < a.size(); ++row) {
    for (std::size_t i = 0; i < a[row].size(); ++i) squares += std::pow(static_cast<double>(a[row][i]) - b[row][i], 2);
    count += a[row].size();
  }
  return std::sqrt(squares / static_cast<double>(count));
}

std::string first_difference(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return std::to_string(a.size()) + " rows against " + std::to_string(b.size());
  for (std::size_t row = 0; row < a.size(); ++row) {
    if (a[row].size() != b[row].size()) return "row " + std::to_string(row) + " has another size";
    for (std::size_t i = 0; i < a[row].size(); ++i) {
      if (std::bit_cast<std::uint32_t>(a[row][i]) == std::bit_cast<std::uint32_t>(b[row][i])) continue;
      return "row " + std::to_string(row) + ", logit " + std::to_string(i) + ": " + std::to_string(a[row][i]) +
             " against " + std::to_string(b[row][i]);
    }
  }
  return "";
}

void append(Logits& all, const Logits& more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace gemma
