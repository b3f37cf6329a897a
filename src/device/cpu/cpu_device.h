#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/cpu/attention.h"
#include "device/cpu/int8_kernels.h"
#include "device/cpu/kv_store.h"
#include "device/cpu/memory.h"
#include "device/cpu/product.h"
#include "device/cpu/thread_pool.h"
#include "device/device.h"

namespace gemma {

/// The steps of the forward pass in float32 (but for the inputs of products with quantised weights), each split into
/// tasks for the threads. Every number is computed by one task in an order that depends on nothing but the model, so
/// that results are the same bits for all numbers of threads, rows and chunks.
class CpuDevice final : public Device {
 public:
  CpuDevice(const Model& model, const CpuOptions& options);

  std::string description() const override;
  int max_rows() const override { return max_rows_; }
  int max_logit_rows() const override { return max_logit_rows_; }
  const KvLayout& kv_layout() const override { return cache_.layout(); }

  void embed(const Batch& batch) override;
  void qkv(const Batch& batch, int layer) override;
  void attend(const Batch& batch, int layer) override;
  void attention_out(const Batch& batch, int layer) override;
  void mlp(const Batch& batch, int layer) override;
  void logits(const Batch& batch, int first, int count) override;
  void sample(const Batch& batch, int first, int count, std::span<Output> answers) override;

  void copy_ring(int from, int to) override { cache_.copy_ring(from, to); }
  void copy_page(int from, int to) override { cache_.copy_page(from, to); }
  std::size_t slot_bytes() const override { return cache_.slot_bytes(); }
  void read_slots(int ring, int slot, int count, std::span<std::byte> out) override {
    cache_.read_slots(ring, slot, count, out);
  }
  void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) override {
    cache_.write_slots(ring, slot, count, bytes);
  }

 private:
  /// Neighbouring rows of one sequence.
  struct Piece {
    const SequenceRows* sequence = nullptr;
    int row = 0;  // in the batch
    int rows = 0;
    int position = 0;  // of the first row

    Piece part(int first, int count) const { return {sequence, row + first, count, position + first}; }
  };

  /// The attention of a piece's rows through one KV head, over the spans [first_span, last_span].
  struct AttentionTask {
    Piece piece;
    int kv_head = 0;
    int first_span = 0;
    int last_span = 0;
    int first_part = -1;  // where the queries' sums go when other tasks do their other spans
  };

  /// What one thread works with.
  struct ThreadScratch {
    ProductScratch product;
    FloatRows gate;       // [max_rows, kWidestOutputBlock]
    FloatRows up;         // [max_rows, kWidestOutputBlock]
    FloatRows outs;       // [queries of a task, head_dim]
    FloatRows span_outs;  // [queries of a task, head_dim]
    std::vector<Query> queries;
    std::vector<AttentionSums> sums;
    std::vector<AttentionSums> span_sums;
  };

  /// Calls body(first output, outputs, first row, rows, scratch) for the blocks of a matrix product, on all threads.
  /// @param outputs  the first ones of the matrix.
  template <typename Body>
  void for_each_block(const Matrix& weights, int outputs, int rows, Body&& body);

  void multiply(const Matrix& weights, const ProductInputs& x, int rows, FloatRows& out);

  /// RMSNorm of one row of x into one of the inputs of a product with `weights`.
  void normalise(int row, std::span<const float> norm, const Matrix& weights, int to);
  /// Makes a row, which holds floats, ready for a product with `weights`.
  void prepare(ProductInputs& x, int row, const Matrix& weights);
  void add_projected(int rows, std::span<const float> weight);

  void write_to_cache(std::span<const Piece> pieces, int layer);
  void attend_pieces(std::span<const Piece> pieces, int layer);
  void attend_spans(const AttentionTask& task, const AttentionShape& shape, int layer, ThreadScratch& scratch);
  void merge_parts(const AttentionTask& task);
  void make_parts(int count);

  int group() const { return config_.heads / config_.kv_heads; }  // query heads of a KV head
  int max_queries_per_task() const;

  /// One head of a row: queries, then keys, then values.
  float* head_of(int row, int head) const { return qkv_.row(row) + head * config_.head_dim; }

  Model model_;
  const Config& config_;  // of model_
  decltype(CpuOptions::observe_input) observe_input_;
  int max_rows_;
  int max_logit_rows_;
  ThreadPool pool_;
  Int8Kernels int8_kernels_;
  KvStore cache_;
  std::vector<double> rope_frequencies_;  // [head_dim / 2] radians per position
  std::vector<ThreadScratch> scratch_;    // [threads]

  // Activations of the rows of a batch, [max_rows, ...].
  FloatRows x_;             // [hidden]: the residual stream
  ProductInputs normed_;    // [hidden]
  FloatRows projected_;     // [hidden]: what is added to the residual stream
  FloatRows qkv_;           // [qkv_size]
  ProductInputs attended_;  // [query_size]
  ProductInputs gated_;     // [intermediate]
  FloatRows cos_;           // [head_dim / 2]
  FloatRows sin_;           // [head_dim / 2]
  FloatRows logits_;        // [max_logit_rows, vocab]

  // Attention sums over single spans, while they wait to be merged.
  std::vector<AttentionSums> parts_;
  std::vector<float> part_outs_;  // [parts, head_dim]
};

}  // namespace gemma
