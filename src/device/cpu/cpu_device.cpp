#include "device/cpu/cpu_device.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <utility>

#include "device/attention_mask.h"
#include "device/cpu/elementwise.h"
#include "device/cpu/sample.h"
#include "device/cpu/simd_targets.h"
#include "gemma/error.h"
#include "model/dequantise.h"

namespace gemma {
namespace {

/// Memory for logits; the number of rows that are held at once follows from it.
constexpr std::size_t kLogitBytes = std::size_t{64} << 20;

/// Inputs of a matrix product that are used together: they stay in the level 3 cache while the weights stream past.
constexpr std::size_t kInputBytes = std::size_t{6} << 20;

/// Queries of a task when a prompt is read: enough to make loading keys and values cheap.
constexpr int kQueriesPerTask = 64;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

int logit_rows(const Config& config, int max_rows) {
  const std::size_t row = static_cast<std::size_t>(config.vocab_size) * sizeof(float);
  return std::clamp(static_cast<int>(kLogitBytes / row), 1, max_rows);
}

std::string gibibytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GiB", bytes / (1 << 30));
  return text;
}

/// Throws if cache and activations are more than the system can give.
/// @return max_rows
int check_memory(const Config& config, const CpuOptions& options) {
  if (options.max_rows < 1) throw Error("a batch must have room for at least one row");
  if (options.threads < 0) throw Error("the number of threads must be positive, or 0 for one for each core");
  const double cache = KvStore::bytes(config, options.kv);
  const double row = ProductInputs::row_bytes(config.hidden_size) + ProductInputs::row_bytes(config.query_size()) +
                     ProductInputs::row_bytes(config.intermediate_size) +
                     4.0 * (2.0 * config.hidden_size + config.qkv_size() + config.head_dim);
  const double work = options.max_rows * row + 4.0 * logit_rows(config, options.max_rows) * config.vocab_size;
  const auto available = static_cast<double>(available_memory());
  if (cache + work > available) {
    throw OutOfMemory("the cache needs " + gibibytes(cache) + " and the work space " + gibibytes(work) +
                      " of memory, but only " + gibibytes(available) +
                      " are available. Ask for a shorter context (--context), a smaller cache type (--kv-type q8)" +
                      " or smaller chunks (--chunk).");
  }
  return options.max_rows;
}

/// Name of the instruction set that the kernels use here.
std::string instruction_set() {
  const std::int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  const std::int64_t best = usable & -usable;
  return best == HWY_AVX3 ? "AVX-512" : hwy::TargetName(best);
}

/// Rows from `position` on that can be written to a ring before they are attended to: none of them may overwrite a
/// position that the first of them still sees. A chunk that is longer goes in several pieces.
int rows_before_overwriting(const KvLayout& layout, int position) {
  const int until_wrap = layout.ring_slots - position;
  const int slack = layout.ring_slots - std::min(layout.window, layout.ring_slots) + 1;
  return std::max(until_wrap, slack);
}

}  // namespace

CpuDevice::CpuDevice(const Model& model, const CpuOptions& options)
    : model_(model),
      config_(model_.config),
      observe_input_(options.observe_input),
      max_rows_(check_memory(config_, options)),
      max_logit_rows_(logit_rows(config_, max_rows_)),
      pool_(options.threads > 0 ? options.threads : usable_cores()),
      int8_kernels_(usable_int8_kernels().front()),
      cache_(config_, options.kv) {
  const int half = config_.head_dim / 2;
  for (int i = 0; i < half; ++i)
    rope_frequencies_.push_back(std::pow(config_.rope_theta, -static_cast<double>(i) / half));

  const char* what = "activations";
  x_ = FloatRows(max_rows_, config_.hidden_size, what);
  normed_ = ProductInputs(max_rows_, config_.hidden_size, what);
  projected_ = FloatRows(max_rows_, config_.hidden_size, what);
  qkv_ = FloatRows(max_rows_, config_.qkv_size(), what);
  attended_ = ProductInputs(max_rows_, config_.query_size(), what);
  gated_ = ProductInputs(max_rows_, config_.intermediate_size, what);
  cos_ = FloatRows(max_rows_, half, what);
  sin_ = FloatRows(max_rows_, half, what);
  logits_ = FloatRows(max_logit_rows_, config_.vocab_size, "logits");
  const int widest = std::max({config_.hidden_size, config_.query_size(), config_.intermediate_size});
  for (int i = 0; i < pool_.threads(); ++i) {
    ThreadScratch scratch;
    scratch.product.unpacked = Int8Scratch(widest);
    scratch.gate = FloatRows(max_rows_, kWidestOutputBlock, what);
    scratch.up = FloatRows(max_rows_, kWidestOutputBlock, what);
    scratch.outs = FloatRows(max_queries_per_task(), config_.head_dim, what);
    scratch.span_outs = FloatRows(max_queries_per_task(), config_.head_dim, what);
    scratch_.push_back(std::move(scratch));
  }
}

int CpuDevice::max_queries_per_task() const { return std::max(kQueriesPerTask, group()); }

std::string CpuDevice::description() const {
  const WeightTypes types = model_.weights.types();
  const bool is_quantised = types.layers != WeightType::kBf16 || types.embed != WeightType::kBf16;
  return "CPU, " + (is_quantised ? int8_kernels_.name : instruction_set()) + ", " + std::to_string(pool_.threads()) +
         (pool_.threads() == 1 ? " thread" : " threads");
}

void CpuDevice::embed(const Batch& batch) {
  const int rows = static_cast<int>(batch.rows.size());
  assert(rows <= max_rows_);
  const float scale = config_.embedding_scale();
  pool_.run(rows, [&](int row, int) {
    const Row& r = batch.rows[static_cast<std::size_t>(row)];
    assert(r.token >= 0 && r.token < config_.vocab_size && r.position >= 0);
    const std::span<float> x(x_.row(row), static_cast<std::size_t>(config_.hidden_size));
    dequantise(model_.weights.embed, r.token, x);
    for (float& value : x) value *= scale;
    for (std::size_t i = 0; i < rope_frequencies_.size(); ++i) {
      const double angle = r.position * rope_frequencies_[i];
      cos_.row(row)[i] = static_cast<float>(std::cos(angle));
      sin_.row(row)[i] = static_cast<float>(std::sin(angle));
    }
  });
}

template <typename Body>
void CpuDevice::for_each_block(const Matrix& weights, int outputs, int rows, Body&& body) {
  const int block = output_block(weights.type);
  const int output_blocks = ceil_div(outputs, block);
  // Many rows are cut up where their inputs would not stay in the cache, or where there is too little work for all
  // threads.
  const std::size_t input_bytes = weights.type == WeightType::kBf16 ? sizeof(float) : sizeof(std::int8_t);
  const int fitting_rows = static_cast<int>(kInputBytes / (input_bytes * static_cast<std::size_t>(weights.columns)));
  const int parts = std::clamp(std::max(ceil_div(rows, std::max(fitting_rows, 1)), 4 * pool_.threads() / output_blocks),
                               1, ceil_div(rows, kRowBlock));
  const int part_rows = ceil_div(ceil_div(rows, parts), kRowBlock) * kRowBlock;
  pool_.run(output_blocks * ceil_div(rows, part_rows), [&](int task, int thread) {
    const int output = task % output_blocks * block;
    const int row = task / output_blocks * part_rows;
    body(output, std::min(block, outputs - output), row, std::min(part_rows, rows - row),
         scratch_[static_cast<std::size_t>(thread)]);
  });
}

void CpuDevice::multiply(const Matrix& weights, const ProductInputs& x, int rows, FloatRows& out) {
  for_each_block(weights, weights.rows, rows, [&](int output, int count, int row, int part, ThreadScratch& scratch) {
    multiply_block(weights, output, count, x, row, part, int8_kernels_, out.row(row) + output, out.columns(),
                   scratch.product);
  });
}

void CpuDevice::normalise(int row, std::span<const float> norm, const Matrix& weights, int to) {
  rms_norm({x_.row(row), static_cast<std::size_t>(config_.hidden_size)}, norm, static_cast<float>(config_.rms_norm_eps),
           normed_.row(to));
  prepare(normed_, to, weights);
}

void CpuDevice::prepare(ProductInputs& x, int row, const Matrix& weights) {
  if (observe_input_) observe_input_(weights, row, {x.row(row), static_cast<std::size_t>(weights.columns)});
  x.prepare(row, weights.type);
}

void CpuDevice::add_projected(int rows, std::span<const float> weight) {
  pool_.run(rows, [&](int row, int) {
    add_rms_norm({projected_.row(row), static_cast<std::size_t>(config_.hidden_size)}, weight,
                 static_cast<float>(config_.rms_norm_eps), x_.row(row));
  });
}

void CpuDevice::qkv(const Batch& batch, int layer) {
  const LayerWeights& weights = model_.weights.layers[static_cast<std::size_t>(layer)];
  const int rows = static_cast<int>(batch.rows.size());
  pool_.run(rows, [&](int row, int) { normalise(row, weights.attention_norm, weights.qkv, row); });
  multiply(weights.qkv, normed_, rows, qkv_);
  const auto scale = static_cast<float>(1.0 / std::sqrt(config_.query_pre_attn_scalar));
  pool_.run(rows, [&](int row, int) {
    for (int head = 0; head < config_.heads + config_.kv_heads; ++head) {
      rotate(head_of(row, head), config_.head_dim, cos_.row(row), sin_.row(row), head < config_.heads ? scale : 1.0f);
    }
  });
}

void CpuDevice::attend(const Batch& batch, int layer) {
  const bool is_local = config_.layers[static_cast<std::size_t>(layer)] == LayerKind::kLocal;
  std::vector<Piece> rest;
  for (const SequenceRows& sequence : batch.sequences) {
    if (sequence.rows > 0) rest.push_back({&sequence, sequence.first_row, sequence.rows, sequence.position});
  }
  while (!rest.empty()) {
    std::vector<Piece> pieces = rest;
    if (is_local) {
      for (Piece& piece : pieces)
        piece.rows = std::min(piece.rows, rows_before_overwriting(cache_.layout(), piece.position));
    }
    write_to_cache(pieces, layer);
    attend_pieces(pieces, layer);
    for (std::size_t i = 0; i < rest.size(); ++i) rest[i] = rest[i].part(pieces[i].rows, rest[i].rows - pieces[i].rows);
    std::erase_if(rest, [](const Piece& piece) { return piece.rows == 0; });
  }
}

void CpuDevice::write_to_cache(std::span<const Piece> pieces, int layer) {
  pool_.run(static_cast<int>(pieces.size()) * config_.kv_heads, [&](int task, int) {
    const Piece& piece = pieces[static_cast<std::size_t>(task / config_.kv_heads)];
    const int kv_head = task % config_.kv_heads;
    for (int done = 0; done < piece.rows;) {
      const int position = piece.position + done;
      const int count = std::min(piece.rows - done, kPagePositions - position % kPagePositions);
      cache_.write(*piece.sequence, layer, kv_head, position, count, head_of(piece.row + done, config_.heads + kv_head),
                   head_of(piece.row + done, config_.heads + config_.kv_heads + kv_head),
                   static_cast<std::size_t>(qkv_.columns()));
      done += count;
    }
  });
}

void CpuDevice::attend_pieces(std::span<const Piece> pieces, int layer) {
  const AttentionShape shape{
      config_.head_dim, config_.attention_softcap.value_or(0.0f),
      config_.layers[static_cast<std::size_t>(layer)] == LayerKind::kLocal ? cache_.layout().window : kNoWindow,
      cache_.layout().type};
  // Several tasks for each thread, so that none waits long for another at the end.
  const int wanted_tasks = 4 * pool_.threads();
  int rows = 0;
  for (const Piece& piece : pieces) rows += piece.rows;
  const int task_rows = std::clamp(rows * config_.kv_heads / wanted_tasks, 1, max_queries_per_task() / group());

  std::vector<AttentionTask> whole;
  for (const Piece& piece : pieces) {
    for (int done = 0; done < piece.rows; done += task_rows) {
      const Piece part = piece.part(done, std::min(task_rows, piece.rows - done));
      for (int kv_head = 0; kv_head < config_.kv_heads; ++kv_head) {
        whole.push_back({part, kv_head, first_visible(part.position, shape.window) / kSpanPositions,
                         (part.position + part.rows - 1) / kSpanPositions});
      }
    }
  }
  const auto attend_task = [&](const AttentionTask& task, int thread) {
    attend_spans(task, shape, layer, scratch_[static_cast<std::size_t>(thread)]);
  };
  if (pool_.threads() == 1 || static_cast<int>(whole.size()) >= wanted_tasks) {
    pool_.run(static_cast<int>(whole.size()),
              [&](int i, int thread) { attend_task(whole[static_cast<std::size_t>(i)], thread); });
    return;
  }

  std::vector<AttentionTask> split;
  int parts = 0;
  for (AttentionTask& task : whole) {
    task.first_part = parts;
    for (int span = task.first_span; span <= task.last_span; ++span) {
      split.push_back({task.piece, task.kv_head, span, span, parts});
      parts += task.piece.rows * group();
    }
  }
  make_parts(parts);
  pool_.run(static_cast<int>(split.size()),
            [&](int i, int thread) { attend_task(split[static_cast<std::size_t>(i)], thread); });
  pool_.run(static_cast<int>(whole.size()), [&](int i, int) { merge_parts(whole[static_cast<std::size_t>(i)]); });
}

void CpuDevice::attend_spans(const AttentionTask& task, const AttentionShape& shape, int layer,
                             ThreadScratch& scratch) {
  const Piece& piece = task.piece;
  const int count = piece.rows * group();
  const auto size = static_cast<std::size_t>(count);
  std::vector<Query>& queries = scratch.queries;
  std::vector<AttentionSums>& sums = scratch.sums;
  std::vector<AttentionSums>& span_sums = scratch.span_sums;
  queries.resize(size);
  sums.resize(size);
  span_sums.resize(size);
  for (int i = 0; i < count; ++i) {
    const int row = i / group();
    queries[i] = {head_of(piece.row + row, task.kv_head * group() + i % group()), piece.position + row};
    sums[i].out = scratch.outs.row(i);
    span_sums[i].out = scratch.span_outs.row(i);
    clear_sums(sums[i], shape.head_dim);
  }

  const int first_block = first_visible(piece.position, shape.window) / kPagePositions;
  const int last_block = (piece.position + piece.rows - 1) / kPagePositions;
  constexpr int kSpanBlocks = kSpanPositions / kPagePositions;
  for (int span = task.first_span; span <= task.last_span; ++span) {
    std::array<KvBlock, kSpanBlocks> blocks;
    const int begin = std::max(first_block, span * kSpanBlocks);
    const int end = std::min(last_block + 1, (span + 1) * kSpanBlocks);
    for (int block = begin; block < end; ++block) {
      blocks[block - begin] = cache_.block(*piece.sequence, layer, task.kv_head, block * kPagePositions);
    }
    const std::span<const KvBlock> used(blocks.data(), static_cast<std::size_t>(end - begin));
    if (task.first_part >= 0) {
      attend_span(shape, queries, used, begin * kPagePositions,
                  std::span(parts_).subspan(static_cast<std::size_t>(task.first_part), size));
      return;
    }
    attend_span(shape, queries, used, begin * kPagePositions, span_sums);
    for (int i = 0; i < count; ++i) merge_sums(sums[i], span_sums[i], shape.head_dim);
  }
  for (int i = 0; i < count; ++i) {
    finish_sums(sums[i], shape.head_dim,
                attended_.row(piece.row + i / group()) + (task.kv_head * group() + i % group()) * shape.head_dim);
  }
}

void CpuDevice::merge_parts(const AttentionTask& task) {
  const int count = task.piece.rows * group();
  for (int i = 0; i < count; ++i) {
    float* out =
        attended_.row(task.piece.row + i / group()) + (task.kv_head * group() + i % group()) * config_.head_dim;
    AttentionSums sums{0, 0, out};
    clear_sums(sums, config_.head_dim);
    for (int span = task.first_span; span <= task.last_span; ++span) {
      merge_sums(sums, parts_[task.first_part + (span - task.first_span) * count + i], config_.head_dim);
    }
    finish_sums(sums, config_.head_dim, out);
  }
}

void CpuDevice::make_parts(int count) {
  const auto size = static_cast<std::size_t>(count);
  const auto width = static_cast<std::size_t>(config_.head_dim);
  if (part_outs_.size() < size * width) part_outs_.resize(size * width);
  parts_.resize(size);
  for (std::size_t i = 0; i < size; ++i) parts_[i].out = part_outs_.data() + i * width;
}

void CpuDevice::attention_out(const Batch& batch, int layer) {
  const LayerWeights& weights = model_.weights.layers[static_cast<std::size_t>(layer)];
  const int rows = static_cast<int>(batch.rows.size());
  pool_.run(rows, [&](int row, int) { prepare(attended_, row, weights.attention_out); });
  multiply(weights.attention_out, attended_, rows, projected_);
  add_projected(rows, weights.attention_post_norm);
}

void CpuDevice::mlp(const Batch& batch, int layer) {
  const LayerWeights& weights = model_.weights.layers[static_cast<std::size_t>(layer)];
  const int rows = static_cast<int>(batch.rows.size());
  const int intermediate = config_.intermediate_size;
  pool_.run(rows, [&](int row, int) { normalise(row, weights.mlp_norm, weights.gate_up, row); });
  for_each_block(weights.gate_up, intermediate, rows,
                 [&](int output, int count, int row, int part, ThreadScratch& scratch) {
                   const auto gate_or_up = [&](int first, FloatRows& out) {
                     multiply_block(weights.gate_up, first, count, normed_, row, part, int8_kernels_, out.data(),
                                    out.columns(), scratch.product);
                   };
                   gate_or_up(output, scratch.gate);
                   gate_or_up(intermediate + output, scratch.up);
                   for (int i = 0; i < part; ++i)
                     geglu(scratch.gate.row(i), scratch.up.row(i), count, gated_.row(row + i) + output);
                 });
  pool_.run(rows, [&](int row, int) { prepare(gated_, row, weights.down); });
  multiply(weights.down, gated_, rows, projected_);
  add_projected(rows, weights.mlp_post_norm);
}

void CpuDevice::logits(const Batch& batch, int first, int count) {
  assert(count <= max_logit_rows_);
  pool_.run(count, [&](int i, int) {
    const OutputRow& output = batch.outputs[first + i];
    normalise(output.row, model_.weights.final_norm, model_.weights.head, i);
  });
  const Matrix& head = model_.weights.head;
  for_each_block(head, head.rows, count, [&](int output, int outputs, int row, int part, ThreadScratch& scratch) {
    multiply_block(head, output, outputs, normed_, row, part, int8_kernels_, logits_.row(row) + output,
                   logits_.columns(), scratch.product);
    if (!config_.final_softcap) return;
    for (int i = 0; i < part; ++i) softcap(logits_.row(row + i) + output, outputs, *config_.final_softcap);
  });
}

void CpuDevice::sample(const Batch& batch, int first, int count, std::span<Output> answers) {
  pool_.run(count, [&](int i, int) {
    const OutputRow& output = batch.outputs[first + i];
    const std::span<float> logits(logits_.row(i), static_cast<std::size_t>(config_.vocab_size));
    answers[static_cast<std::size_t>(i)] =
        answer(output, logits, batch.rows[static_cast<std::size_t>(output.row)].position);
  });
}

std::unique_ptr<Device> make_cpu_device(const Model& model, const CpuOptions& options) {
  return std::make_unique<CpuDevice>(model, options);
}

}  // namespace gemma
