#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "decode.cuh"
#include "device/cuda/device_weights.h"
#include "device/cuda/handles.h"
#include "device/device.h"
#include "gemm.h"
#include "kv_quantise.cuh"
#include "layer_cache.cuh"
#include "sample.cuh"

namespace gemma::cuda {

/// Gemma 2 on an NVIDIA GPU. Prompt rows go through the seven steps one kernel after the other; generated rows go
/// through decode_at_once, one persistent kernel for all steps (kernels/decode.cuh).
class CudaDevice final : public Device {
 public:
  CudaDevice(const Model& model, const CudaOptions& options);
  ~CudaDevice() override;

  std::string description() const override { return description_; }
  int max_rows() const override { return max_rows_; }
  int max_generated_rows() const override { return decode_rows_; }
  int max_logit_rows() const override { return logit_rows_; }
  int max_top_logprobs() const override { return kMaxTopLogprobs; }
  const KvLayout& kv_layout() const override { return layout_; }
  std::size_t memory_bytes() const override { return planned_bytes_; }

  bool decode_at_once(const Batch& batch) override;
  std::vector<PhaseTime> profile_decode(const Batch& batch) override;
  void embed(const Batch& batch) override;
  void qkv(const Batch& batch, int layer) override;
  void attend(const Batch& batch, int layer) override;
  void attention_out(const Batch& batch, int layer) override;
  void mlp(const Batch& batch, int layer) override;
  void logits(const Batch& batch, int first, int count) override;
  void sample(const Batch& batch, int first, int count, std::span<Output> answers) override;
  bool runs_ahead() const override { return true; }
  void finish(int steps_ahead) override;
  void synchronize() override { stream_.synchronize(); }

  void copy_ring(int from, int to) override;
  void copy_page(int from, int to) override;
  std::size_t slot_bytes() const override;
  void read_slots(int ring, int slot, int count, std::span<std::byte> out) override;
  void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) override;

 private:
  // Answers that are being made.
  struct Pending {
    Event is_done;
    PinnedBuffer<SampleRow> rows;
    PinnedBuffer<RecentTokens> recent;
    PinnedBuffer<int> row_count;
    PinnedBuffer<SampleOutput> outputs;
    PinnedBuffer<TokenLogprob> top;
    std::vector<int> top_counts;
    std::span<Output> answers;
    bool is_open = false;
  };
  // Inputs on their way to the GPU; one set is not touched again before its copy is done.
  struct Inputs {
    Event is_sent;
    PinnedBuffer<int> values;
  };

  Inputs& next_inputs();
  DecodeModel decode_model(int first_row, int launch) const;
  int* decode_tokens() const;
  int* decode_positions() const;
  void send_decode_inputs(const Batch& batch, std::span<const int> rows, std::span<const int> wave_ends);
  void launch_decodes(std::span<const int> wave_ends, cudaStream_t stream);
  const PromptSequence* prompt_sequence_table() const;
  LayerCache layer_cache(int layer) const;
  // Calls use(weights, first, outputs) with a matrix in bf16: all at once where that is how it lies in memory, else
  // slab by slab, each unpacked to where the last one was.
  template <class Use>
  void with_bf16(const StreamedMatrix& matrix, WeightType type, const Use& use);
  void multiply(float* out, const __nv_bfloat16* in, const StreamedMatrix& matrix, WeightType type, int rows);
  LayerCache expanded(const LayerCache& cache, int window);
  QuantisedRows quantised_rows() const;
  SampleArguments sample_arguments() const;
  void collect(Pending& pending);
  void copy_slots(int ring, int slot, int count, std::byte* host, cudaMemcpyKind direction);

  Config config_;
  KvLayout layout_;
  int max_rows_;
  int logit_rows_;  // of a prompt, held at once
  int max_pages_ = 0;
  int max_blocks_ = 0;
  int decode_rows_ = 0;  // generated rows that a step may have
  int group_rows_ = 0;   // of them, those that one launch takes
  Gemm gemm_;
  std::size_t planned_bytes_;
  std::string description_;

  Stream stream_;
  DeviceWeights weights_;
  Buffer<DecodeLayer> decode_layers_;
  Buffer<float2> rope_;
  Buffer<std::byte> rings_, pages_;

  // Prompt rows.
  Buffer<int> prompt_inputs_;  // tokens, positions, sequences, page table, rows of which logits are wanted
  Buffer<float> x_, projected_;
  Buffer<float> scratch_;  // queries, keys and values, or gate and up, where products do not end with what follows
  Buffer<__nv_bfloat16> unpacked_;  // of quantised weights, those that a product is about to use
  Buffer<__nv_bfloat16> normed_, q_, k_, v_, attended_, activated_;
  Buffer<std::int8_t> kv_codes_;  // where the cache is in 8 bits: those of k_, then those of v_; and their scales
  Buffer<float> kv_scales_;
  Buffer<__nv_bfloat16> kv_expanded_;  // what a layer's attention sees of such a cache
  int prompt_rows_ = 0;
  std::vector<int> prompt_row_of_;  // index among the prompt rows of each row of the batch, or -1
  int prompt_sequences_ = 0;
  int longest_sequence_ = 0;
  int longest_past_ = 0;  // positions before the rows of a sequence

  // Generated rows.
  Buffer<int> decode_inputs_;  // row counts, tokens, positions, rings, page table
  Buffer<float> decode_residual_, decode_qkv_, decode_projected_;
  Buffer<std::byte> decode_partials_, decode_group_partials_;
  Buffer<float2> decode_partial_sums_, decode_group_sums_;
  Buffer<__nv_bfloat16> decode_normalized_, decode_attended_, decode_activated_;
  Buffer<DigitGroup> decode_groups_;
  Buffer<unsigned> decode_arrivals_;
  Buffer<unsigned long long> decode_exchange_;
  Buffer<unsigned long long> decode_messages_;  // of a step with a single row
  std::vector<int> decode_row_of_;              // index among the generated rows of each row of the batch, or -1
  std::vector<int> decode_rings_;               // of the last step's generated rows
  std::vector<int> next_positions_;             // those of the next step, if it continues the last one
  std::vector<int> sent_pages_;                 // the page table that the GPU has
  std::vector<Graph>
      step_graphs_;            // [decode_rows + 1]: decoding and sampling of so many rows, captured when first needed
  bool is_continued_ = false;  // this step's tokens are those that the last one drew
  bool is_sampled_ = false;    // this step's graph had the sampling in it

  // Logits and answers.
  Buffer<float> logits_;            // generated rows' [decode_rows, vocab], then prompt rows' [logit_rows, vocab]
  std::vector<int> logits_row_of_;  // where the logits of each output of the last call are
  Buffer<SampleRow> sample_rows_;
  Buffer<RecentTokens> recent_;
  Buffer<int> sample_row_count_;
  Buffer<SampleOutput> sample_outputs_;
  Buffer<TokenLogprob> sample_top_;
  Buffer<std::byte> sample_workspace_;

  std::array<Pending, 4> pending_;
  std::size_t next_pending_ = 0;
  std::array<Inputs, 4> inputs_;
  std::size_t next_inputs_ = 0;
};

}  // namespace gemma::cuda
