#include "device/cuda/cuda_device.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "activation.cuh"
#include "device/attention_mask.h"
#include "device/cuda/weight_slabs.h"
#include "device/cuda_support.h"
#include "embed.cuh"
#include "gemma/error.h"
#include "kv_commit.cuh"
#include "kv_quantise.cuh"
#include "norm.cuh"
#include "packed_weights.cuh"
#include "prompt_attention.cuh"
#include "rope.cuh"
#include "rope_table.cuh"
#include "unpack_weights.cuh"

namespace gemma::cuda {
namespace {

constexpr int kMaxLogitRows = 128;  // of a prompt; 131 MB of logits at 256,000 tokens
constexpr int kTypicalRows = 2048;  // that cuBLASLt's algorithms are chosen for; whatever --chunk says
constexpr std::size_t kSlabBytes = std::size_t{64} << 20;  // of weights that are unpacked at once, or a whole qkv
constexpr int kMaxDecodeRows = 64;  // generated rows of a step, where there are fewer sequences than that

int ceil_div(int a, int b) { return (a + b - 1) / b; }

std::size_t size(long long count) { return static_cast<std::size_t>(count); }

/// Logits of a row, rounded up so that rows are aligned and cuBLASLt is never asked for an odd number of outputs.
std::size_t logits_pitch(const Config& config) { return size(ceil_div(config.vocab_size, 8) * 8); }

/// Refuses what the kernels cannot do.
void check_shape(const Model& model, const KvLayout& layout) {
  const Config& config = model.config;
  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) throw Error("the CUDA device cannot run '" + model.name + "': " + what + "; run it with --device cpu");
  };
  const std::string why_not = why_not_on_cuda(model, layout.type);
  require(why_not.empty(), why_not);
  require(config.vocab_size <= kMaxSampledVocab,
          "its vocabulary has more than " + std::to_string(kMaxSampledVocab) + " entries");
}

/// Bytes of one sequence's keys and values in one layer, at one position.
std::size_t position_bytes(const Config& config, KvType type) {
  return 2 * size(config.kv_heads) * head_bytes(type, config.head_dim);
}

/// How many elements everything has that lies in the GPU's memory, weights aside.
struct Sizes {
  int decode_rows;  // generated rows of a step
  int group_rows;   // of them, those of one launch, each of another sequence
  int max_pages, max_blocks, groups_of_blocks;
  std::size_t rope;
  std::size_t rings, pages;  // bytes
  std::size_t kv_codes, kv_scales, kv_expanded;
  std::size_t unpacked;
  std::size_t prompt_inputs, x, normed, scratch, q, kv, attended, projected, activated;
  std::size_t decode_inputs, decode_residual, decode_exchange, decode_qkv, decode_projected;
  std::size_t decode_normalized, decode_groups, decode_attended, decode_activated, decode_messages;
  std::size_t partials, group_partials;  // bytes
  std::size_t partial_sums, group_sums, arrivals;
  std::size_t logits, answers, workspace;

  std::size_t cache_bytes() const { return rings + pages; }
  std::size_t work_bytes() const {
    return 8 * rope + 4 * prompt_inputs + 4 * (x + projected + scratch) +
           2 * (unpacked + normed + q + 2 * kv + attended + activated) + kv_codes + 4 * kv_scales + 2 * kv_expanded +
           4 * (decode_inputs + decode_residual + decode_qkv + decode_projected) +
           2 * (decode_normalized + decode_attended + decode_activated) +
           8 * (decode_groups + decode_exchange + decode_messages) + partials + group_partials +
           4 * (group_sums * 2 + partial_sums * 2 + arrivals) + 4 * logits +
           answers * (sizeof(SampleRow) + sizeof(RecentTokens) + sizeof(SampleOutput) +
                      kMaxTopLogprobs * sizeof(TokenLogprob)) +
           workspace;
  }
};

/// Elements of the weights that are unpacked at once. Queries, keys and values are never cut; of other matrices a slab
/// suffices.
std::size_t unpacked_size(const Config& config, WeightTypes types) {
  if (types.layers == WeightType::kBf16) return 0;
  const auto elements = [](int rows, int columns) {
    return size(ceil_div(rows, kPieceRows) * kPieceRows) * size(columns);
  };
  const int widest = std::max({config.hidden_size, config.query_size(), config.intermediate_size});
  const std::size_t largest =
      std::max({elements(config.vocab_size, config.hidden_size),
                elements(2 * config.intermediate_size, config.hidden_size), elements(config.hidden_size, widest)});
  return std::max(
      {elements(config.qkv_size(), config.hidden_size), std::min(largest, kSlabBytes / 2), least_slab(widest)});
}

/// What decode kernels are chosen by.
DecodeModel decode_shape(const Config& config, WeightTypes types, KvType kv_type) {
  DecodeModel m{};
  m.hidden = config.hidden_size;
  m.intermediate = config.intermediate_size;
  m.heads = config.heads;
  m.kv_heads = config.kv_heads;
  m.head_dim = config.head_dim;
  m.layer_type = types.layers;
  m.head_type = types.embed;
  m.kv_type = kv_type;
  return m;
}

Sizes plan_sizes(const Config& config, WeightTypes types, const CudaOptions& options, const Gemm& gemm) {
  const KvLayout& kv = options.kv;
  Sizes s{};
  s.decode_rows = std::max(kv.rings, std::min(options.max_rows, kMaxDecodeRows));
  DecodeModel shape = decode_shape(config, types, kv.type);
  s.group_rows = std::min(max_decode_rows(shape), kv.rings);
  s.max_pages = ceil_div(kv.context, kPagePositions);
  s.max_blocks = s.max_pages + 1;
  s.groups_of_blocks = max_groups(s.max_blocks);
  s.rope = size(kv.context) * size(config.head_dim / 2);
  const std::size_t ring_positions = size(kv.rings) * size(kv.ring_slots);
  const std::size_t page_positions = size(kv.pages) * size(kPagePositions);
  s.rings = size(config.local_layer_count()) * ring_positions * position_bytes(config, kv.type);
  s.pages = size(config.global_layer_count()) * page_positions * position_bytes(config, kv.type);

  const std::size_t rows = size(options.max_rows);
  const std::size_t logit_rows = size(std::min(options.max_rows, kMaxLogitRows));
  s.prompt_inputs = 2 * rows + size(kv.rings) * (sizeof(PromptSequence) / sizeof(int) + size(s.max_pages)) + logit_rows;
  s.unpacked = unpacked_size(config, types);
  s.x = s.projected = s.normed = rows * size(config.hidden_size);
  s.scratch = std::max(gemm.qkv_scratch(options.max_rows, config.head_dim, config.qkv_size()),
                       gemm.geglu_scratch(options.max_rows, config.intermediate_size));
  s.q = s.attended = rows * size(config.query_size());
  s.kv = rows * size(config.kv_size());
  if (kv.type == KvType::kQ8) {
    s.kv_codes = 2 * s.kv;
    s.kv_scales = 2 * rows * size(config.kv_heads);
    // One layer of either kind.
    s.kv_expanded = 2 * size(config.kv_size()) *
                    std::max(config.local_layer_count() > 0 ? ring_positions : 0,
                             config.global_layer_count() > 0 ? page_positions : 0);
  }
  s.activated = rows * size(config.intermediate_size);

  const std::size_t decode_rows = size(s.decode_rows);
  const std::size_t group = size(s.group_rows);
  const std::size_t heads = group * size(config.heads);
  s.decode_inputs = decode_rows * (2 + size(s.max_pages)) + 2 * (decode_rows + logit_rows);
  s.decode_residual = 2 * group * size(config.hidden_size);
  s.decode_exchange = decode_exchange_size();
  const auto pieces = [](int columns) { return size(ceil_div(columns, kPieceColumns)); };
  s.decode_qkv = pieces(config.hidden_size) * group * size(config.qkv_size());
  s.decode_projected =
      pieces(std::max(config.query_size(), config.intermediate_size)) * group * size(config.hidden_size);
  const std::size_t whole_tiles = size(ceil_div(s.group_rows, kRowsInFragment) * kRowsInFragment);
  s.decode_normalized = whole_tiles * size(config.hidden_size);
  s.decode_attended = whole_tiles * size(config.query_size());
  s.decode_activated = whole_tiles * size(config.intermediate_size);
  s.decode_groups = std::max(s.decode_normalized, s.decode_activated) / kGroupColumns;
  shape.max_blocks = s.max_blocks;
  s.decode_messages = decode_messages_size(shape);
  s.partial_sums = heads * size(s.max_blocks);
  const std::size_t partial_bytes = has_short_partials(shape.layer_type) ? 2 : 4;
  s.partials = partial_bytes * s.partial_sums * size(config.head_dim);
  s.group_sums = heads * size(s.groups_of_blocks);
  s.group_partials = partial_bytes * s.group_sums * size(config.head_dim);
  s.arrivals = group * size(config.kv_heads) * size(s.groups_of_blocks + 1);

  s.logits = (decode_rows + logit_rows) * logits_pitch(config);
  s.answers = std::max(decode_rows, logit_rows);
  s.workspace = sample_workspace_bytes(static_cast<int>(s.answers), config.vocab_size);
  return s;
}

/// Refuses before anything is allocated what does not fit.
/// @return bytes of weights, cache and work space
std::size_t check_memory(const Model& model, const CudaOptions& options, const Gemm& gemm) {
  check_shape(model, options.kv);
  const Sizes sizes = plan_sizes(model.config, model.weights.types(), options, gemm);
  GpuMemory memory{.weights = DeviceWeights::bytes(model), .cache = sizes.cache_bytes()};
  // What loading takes is given back before the cache and the work space are there.
  const std::size_t staging = DeviceWeights::staging_bytes(model);
  memory.work = std::max(sizes.work_bytes(), staging - std::min(staging, memory.cache));
  check_cuda(cudaMemGetInfo(&memory.available, &memory.total));
  if (memory.needed() > memory.available) throw OutOfMemory(explain_out_of_memory(model, options.kv, memory));
  return memory.needed();
}

std::string describe(int ordinal) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, ordinal));
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor);
}

template <class T>
void send(T* to, const T* from, std::size_t count, cudaStream_t stream) {
  check_cuda(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, stream));
}

template <class T>
void clear(const Buffer<T>& buffer, cudaStream_t stream) {
  if (buffer.size() > 0) check_cuda(cudaMemsetAsync(buffer.data(), 0, buffer.bytes(), stream));
}

}  // namespace

CudaDevice::CudaDevice(const Model& model, const CudaOptions& options)
    : config_(model.config),
      layout_(options.kv),
      max_rows_(options.max_rows),
      logit_rows_(std::min(options.max_rows, kMaxLogitRows)),
      gemm_(kTypicalRows),
      planned_bytes_(check_memory(model, options, gemm_)),
      description_(describe(options.ordinal)),
      weights_(model) {
  const Sizes sizes = plan_sizes(config_, weights_.types(), options, gemm_);
  max_pages_ = sizes.max_pages;
  max_blocks_ = sizes.max_blocks;
  group_rows_ = sizes.group_rows;
  decode_rows_ = sizes.decode_rows;

  decode_layers_ = Buffer<DecodeLayer>(weights_.layers().size());
  upload(decode_layers_, 0, std::span<const DecodeLayer>(weights_.layers()));

  const int half = config_.head_dim / 2;
  std::vector<double> frequencies(size(half));
  for (int i = 0; i < half; ++i) frequencies[size(i)] = std::pow(config_.rope_theta, -static_cast<double>(i) / half);
  const Buffer<double> device_frequencies(frequencies.size());
  upload(device_frequencies, 0, std::span<const double>(frequencies));
  rope_ = Buffer<float2>(sizes.rope);
  launch_rope_table(device_frequencies.data(), layout_.context, half, rope_.data(), stream_);

  rings_ = Buffer<std::byte>(sizes.rings);
  pages_ = Buffer<std::byte>(sizes.pages);
  kv_codes_ = Buffer<std::int8_t>(sizes.kv_codes);
  kv_scales_ = Buffer<float>(sizes.kv_scales);
  kv_expanded_ = Buffer<__nv_bfloat16>(sizes.kv_expanded);
  prompt_inputs_ = Buffer<int>(sizes.prompt_inputs);
  x_ = Buffer<float>(sizes.x);
  projected_ = Buffer<float>(sizes.projected);
  scratch_ = Buffer<float>(sizes.scratch);
  unpacked_ = Buffer<__nv_bfloat16>(sizes.unpacked);
  normed_ = Buffer<__nv_bfloat16>(sizes.normed);
  q_ = Buffer<__nv_bfloat16>(sizes.q);
  k_ = Buffer<__nv_bfloat16>(sizes.kv);
  v_ = Buffer<__nv_bfloat16>(sizes.kv);
  attended_ = Buffer<__nv_bfloat16>(sizes.attended);
  activated_ = Buffer<__nv_bfloat16>(sizes.activated);

  decode_inputs_ = Buffer<int>(sizes.decode_inputs);
  decode_residual_ = Buffer<float>(sizes.decode_residual);
  decode_normalized_ = Buffer<__nv_bfloat16>(sizes.decode_normalized);
  decode_groups_ = Buffer<DigitGroup>(sizes.decode_groups);
  decode_exchange_ = Buffer<unsigned long long>(sizes.decode_exchange);
  decode_messages_ = Buffer<unsigned long long>(sizes.decode_messages);
  decode_qkv_ = Buffer<float>(sizes.decode_qkv);
  decode_partials_ = Buffer<std::byte>(sizes.partials);
  decode_partial_sums_ = Buffer<float2>(sizes.partial_sums);
  decode_group_partials_ = Buffer<std::byte>(sizes.group_partials);
  decode_group_sums_ = Buffer<float2>(sizes.group_sums);
  decode_projected_ = Buffer<float>(sizes.decode_projected);
  decode_attended_ = Buffer<__nv_bfloat16>(sizes.decode_attended);
  decode_activated_ = Buffer<__nv_bfloat16>(sizes.decode_activated);
  decode_arrivals_ = Buffer<unsigned>(sizes.arrivals);
  step_graphs_.resize(size(decode_rows_) + 1);

  logits_ = Buffer<float>(sizes.logits);
  sample_rows_ = Buffer<SampleRow>(sizes.answers);
  recent_ = Buffer<RecentTokens>(sizes.answers);
  sample_row_count_ = Buffer<int>(1);
  sample_outputs_ = Buffer<SampleOutput>(sizes.answers);
  sample_top_ = Buffer<TokenLogprob>(sizes.answers * kMaxTopLogprobs);
  sample_workspace_ = Buffer<std::byte>(sizes.workspace);

  // A slot that nothing was written to must still hold finite numbers.
  clear(rings_, stream_);
  clear(pages_, stream_);
  clear(decode_arrivals_, stream_);
  clear(decode_messages_, stream_);
  // Rows of a fragment that do not exist are read, though not used.
  clear(decode_normalized_, stream_);
  clear(decode_groups_, stream_);
  clear(decode_attended_, stream_);
  clear(decode_activated_, stream_);
  clear(sample_workspace_, stream_);
  clear(sample_top_, stream_);  // copied as a whole, however few of a row are asked for
  for (Pending& pending : pending_) {
    pending.rows = PinnedBuffer<SampleRow>(sizes.answers);
    pending.recent = PinnedBuffer<RecentTokens>(sizes.answers);
    pending.row_count = PinnedBuffer<int>(1);
    pending.outputs = PinnedBuffer<SampleOutput>(sizes.answers);
  }
  for (Inputs& inputs : inputs_) inputs.values = PinnedBuffer<int>(std::max(sizes.prompt_inputs, sizes.decode_inputs));
  stream_.synchronize();
}

CudaDevice::~CudaDevice() { cudaStreamSynchronize(stream_); }

CudaDevice::Inputs& CudaDevice::next_inputs() {
  Inputs& inputs = inputs_[next_inputs_++ % inputs_.size()];
  inputs.is_sent.synchronize();
  return inputs;
}

// --- generated rows ---

// decode_inputs_: row counts of the launches [decode_rows], rings [decode_rows], page table [decode_rows, max_pages],
// then tokens and positions, [decode_rows + logit_rows] each: those of generated rows, then those of prompt rows with
// answers.
int* CudaDevice::decode_tokens() const { return decode_inputs_.data() + decode_rows_ * (2 + max_pages_); }
int* CudaDevice::decode_positions() const { return decode_tokens() + decode_rows_ + logit_rows_; }

DecodeModel CudaDevice::decode_model(int first_row, int launch) const {
  DecodeModel m = decode_shape(config_, weights_.types(), layout_.type);
  m.vocab = config_.vocab_size;
  m.layers = config_.layer_count();
  m.local_layers = config_.local_layer_count();
  m.global_layers = config_.global_layer_count();
  m.window = layout_.window;
  m.ring_slots = layout_.ring_slots;
  m.max_pages = max_pages_;
  m.max_blocks = max_blocks_;
  m.norm_eps = static_cast<float>(config_.rms_norm_eps);
  m.embedding_scale = config_.embedding_scale();
  m.query_scale = static_cast<float>(1.0 / std::sqrt(config_.query_pre_attn_scalar));
  m.attention_softcap = config_.attention_softcap.value_or(0.0f);
  m.final_softcap = config_.final_softcap.value_or(0.0f);

  m.layer = decode_layers_.data();
  m.embed = weights_.embed();
  m.head = weights_.head();
  m.final_norm = weights_.final_norm();
  m.rope = rope_.data();
  m.rings = rings_.data();
  m.pages = pages_.data();

  m.row_count = decode_inputs_.data() + launch;
  m.ring = decode_inputs_.data() + decode_rows_ + first_row;
  m.page_table = decode_inputs_.data() + 2 * decode_rows_ + first_row * max_pages_;
  m.token = decode_tokens() + first_row;
  m.position = decode_positions() + first_row;

  m.residual[0] = decode_residual_.data();
  m.residual[1] = decode_residual_.data() + size(group_rows_) * size(config_.hidden_size);
  m.normalized = decode_normalized_.data();
  m.operand_groups = decode_groups_.data();
  m.rows_held = group_rows_;
  m.qkv = decode_qkv_.data();
  m.partials = decode_partials_.data();
  m.partial_sums = decode_partial_sums_.data();
  m.group_partials = decode_group_partials_.data();
  m.group_sums = decode_group_sums_.data();
  m.attended = decode_attended_.data();
  m.projected = decode_projected_.data();
  m.activated = decode_activated_.data();
  m.logits = logits_.data() + size(first_row) * logits_pitch(config_);
  m.logits_pitch = logits_pitch(config_);
  lay_out_messages(m, decode_messages_.data());
  m.exchange = decode_exchange_.data();
  m.block_arrivals = decode_arrivals_.data();
  return m;
}

bool CudaDevice::decode_at_once(const Batch& batch) {
  decode_row_of_.assign(batch.rows.size(), -1);
  is_sampled_ = false;
  is_continued_ = false;

  // Rows in the order of their launches. A launch takes rows of different sequences: a sequence's second row of the
  // step must find the first one's keys in the cache.
  std::vector<int> rows;
  std::vector<int> wave_ends;
  std::size_t generated = 0;
  for (const Row& row : batch.rows) generated += row.kind == RowKind::kGenerated;
  if (generated == 0) return false;
  if (generated > size(decode_rows_)) {
    throw Error("a step has " + std::to_string(generated) + " generated rows, but this device takes at most " +
                std::to_string(decode_rows_));
  }
  for (int wave = 0; rows.size() < generated; ++wave) {
    for (const SequenceRows& sequence : batch.sequences) {
      const int row = sequence.first_row + wave;
      if (wave < sequence.rows && batch.rows[size(row)].kind == RowKind::kGenerated) rows.push_back(row);
    }
    wave_ends.push_back(static_cast<int>(rows.size()));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) decode_row_of_[size(rows[i])] = static_cast<int>(i);

  const bool is_single_wave = wave_ends.size() == 1;
  is_continued_ = batch.rows[size(rows[0])].token == kSampledToken;
  send_decode_inputs(batch, rows, wave_ends);

  const int count = static_cast<int>(rows.size());
  const bool answers_every_row =
      batch.outputs.size() == rows.size() && batch.rows.size() == rows.size() && count <= logit_rows_;
  if (is_single_wave && is_continued_ && answers_every_row) {
    Graph& graph = step_graphs_[size(count)];
    if (!graph) {
      graph = Graph::capture(stream_, [&](cudaStream_t stream) {
        launch_decodes(wave_ends, stream);
        launch_sample(sample_arguments(), count, stream);
      });
    }
    graph.launch(stream_);
    is_sampled_ = true;
  } else {
    launch_decodes(wave_ends, stream_);
  }
  return true;
}

std::vector<PhaseTime> CudaDevice::profile_decode(const Batch& batch) {
  if (batch.rows.size() != 1) throw Error("only a step of one row can be profiled");
  const int ends[] = {1}, rows[] = {0};
  is_continued_ = false;
  send_decode_inputs(batch, rows, ends);
  int device = 0, blocks = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  const Buffer<DecodeBlockProfile> profile(size(blocks));
  DecodeModel model = decode_model(0, 0);
  model.profile = profile.data();
  launch_decode_profiled(model, stream_);
  std::vector<DecodeBlockProfile> of_block(profile.size());
  check_cuda(cudaMemcpyAsync(of_block.data(), profile.data(), profile.bytes(), cudaMemcpyDeviceToHost, stream_));
  stream_.synchronize();
  next_positions_.clear();  // nothing was drawn that a step could continue

  // In the order of DecodePhase.
  std::vector<PhaseTime> times{{"attention_norm"}, {"qkv"},     {"attend"}, {"attention_out"},
                               {"mlp_norm"},       {"gate_up"}, {"down"},   {"logits"}};
  static_assert(kDecodePhases == 8);
  for (const DecodeBlockProfile& block : of_block) {
    const double seconds = 1e-9 * static_cast<double>(block.nanoseconds) / static_cast<double>(block.cycles);
    for (std::size_t i = 0; i < times.size(); ++i) {
      times[i].busy_s += seconds * static_cast<double>(block.phases[i].busy) / blocks;
      times[i].waiting_s += seconds * static_cast<double>(block.phases[i].waiting) / blocks;
    }
  }
  return times;
}

/// Launches of one wave after the other, each of at most group_rows_ rows.
void CudaDevice::launch_decodes(std::span<const int> wave_ends, cudaStream_t stream) {
  int launch = 0;
  int first = 0;
  for (int end : wave_ends) {
    for (; first < end; first = std::min(first + group_rows_, end)) {
      const int rows = std::min(group_rows_, end - first);
      launch_decode(decode_model(first, launch++), rows, stream);
    }
  }
}

void CudaDevice::send_decode_inputs(const Batch& batch, std::span<const int> rows, std::span<const int> wave_ends) {
  std::vector<int> rings, pages(size(decode_rows_) * size(max_pages_), 0);
  std::vector<int> positions;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& row = batch.rows[size(rows[i])];
    const SequenceRows& sequence = batch.sequences[size(row.sequence)];
    rings.push_back(sequence.ring);
    positions.push_back(row.position);
    std::copy(sequence.pages.begin(), sequence.pages.end(),
              pages.begin() + static_cast<std::ptrdiff_t>(i * size(max_pages_)));
  }

  if (is_continued_) {
    if (rings != decode_rings_ || positions != next_positions_) {
      throw Error("a step that goes on from drawn tokens must have the sequences of the step before it");
    }
    if (pages != sent_pages_) {
      Inputs& inputs = next_inputs();
      std::copy(pages.begin(), pages.end(), inputs.values.data());
      send(decode_inputs_.data() + 2 * decode_rows_, inputs.values.data(), pages.size(), stream_);
      inputs.is_sent.record(stream_);
    }
  } else {
    Inputs& inputs = next_inputs();
    int* values = inputs.values.data();
    int launch = 0;
    int first = 0;
    for (int end : wave_ends) {
      for (; first < end; first = std::min(first + group_rows_, end))
        values[launch++] = std::min(group_rows_, end - first);
    }
    std::copy(rings.begin(), rings.end(), values + decode_rows_);
    std::copy(pages.begin(), pages.end(), values + 2 * decode_rows_);
    int* tokens = values + decode_rows_ * (2 + max_pages_);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      tokens[i] = batch.rows[size(rows[i])].token;
      tokens[size(decode_rows_ + logit_rows_) + i] = positions[i];
    }
    send(decode_inputs_.data(), values, decode_inputs_.size(), stream_);
    inputs.is_sent.record(stream_);
  }
  decode_rings_ = std::move(rings);
  sent_pages_ = std::move(pages);
  next_positions_ = std::move(positions);
  for (int& position : next_positions_) ++position;
}

// --- prompt rows ---

void CudaDevice::embed(const Batch& batch) {
  // prompt_inputs_: tokens [max_rows], positions [max_rows], sequences [rings], page table [rings, max_pages], rows of
  // which logits are wanted [logit_rows].
  Inputs& inputs = next_inputs();
  int* tokens = inputs.values.data();
  int* positions = tokens + max_rows_;
  auto* sequences = reinterpret_cast<PromptSequence*>(positions + max_rows_);
  int* page_table = reinterpret_cast<int*>(sequences + layout_.rings);

  next_positions_.clear();  // the answers to come take the place of those that a decode step could continue
  prompt_row_of_.assign(batch.rows.size(), -1);
  prompt_rows_ = 0;
  prompt_sequences_ = 0;
  longest_sequence_ = 0;
  longest_past_ = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    if (batch.rows[size(sequence.first_row)].kind != RowKind::kPrompt) continue;
    sequences[prompt_sequences_] = {prompt_rows_, sequence.rows, sequence.position, sequence.ring, prompt_sequences_};
    std::copy(sequence.pages.begin(), sequence.pages.end(), page_table + prompt_sequences_ * max_pages_);
    for (int row = sequence.first_row; row < sequence.first_row + sequence.rows; ++row) {
      tokens[prompt_rows_] = batch.rows[size(row)].token;
      positions[prompt_rows_] = batch.rows[size(row)].position;
      prompt_row_of_[size(row)] = prompt_rows_++;
    }
    longest_sequence_ = std::max(longest_sequence_, sequence.rows);
    longest_past_ = std::max(longest_past_, sequence.position);
    ++prompt_sequences_;
  }
  send(prompt_inputs_.data(), inputs.values.data(), prompt_inputs_.size() - size(logit_rows_), stream_);
  inputs.is_sent.record(stream_);
  launch_embed(prompt_inputs_.data(), weights_.embed(), weights_.types().embed, config_.embedding_scale(), prompt_rows_,
               config_.hidden_size, x_.data(), stream_);
}

template <class Use>
void CudaDevice::with_bf16(const StreamedMatrix& matrix, WeightType type, const Use& use) {
  if (type == WeightType::kBf16) {
    use(static_cast<const __nv_bfloat16*>(matrix.weights), 0, matrix.is_gate_up ? matrix.outputs / 2 : matrix.outputs);
    return;
  }
  const std::size_t tile_bytes = packed_bytes(type, kPieceRows, matrix.columns);
  for (const WeightSlab& slab : cut_into_slabs(matrix, unpacked_.size())) {
    const std::byte* units = static_cast<const std::byte*>(matrix.weights) + size(slab.first_tile) * tile_bytes;
    launch_unpack_weights(type, units, slab.shape, unpacked_.data(), stream_);
    use(unpacked_.data(), slab.first_output(), slab.outputs());
  }
}

void CudaDevice::multiply(float* out, const __nv_bfloat16* in, const StreamedMatrix& matrix, WeightType type,
                          int rows) {
  with_bf16(matrix, type, [&](const __nv_bfloat16* weights, int first, int outputs) {
    gemm_.multiply(out + first, in, weights, rows, outputs, matrix.columns, stream_, /*pitch=*/matrix.outputs);
  });
}

LayerCache CudaDevice::layer_cache(int layer) const {
  const DecodeLayer& weights = weights_.layers()[size(layer)];
  LayerCache cache{};
  cache.is_local = weights.is_local != 0;
  cache.memory = cache.is_local ? rings_.data() : pages_.data();
  cache.index_in_kind = weights.index_in_kind;
  cache.layers_of_kind = cache.is_local ? config_.local_layer_count() : config_.global_layer_count();
  cache.kv_heads = config_.kv_heads;
  cache.head_dim = config_.head_dim;
  cache.ring_slots = layout_.ring_slots;
  cache.page_table = reinterpret_cast<const int*>(prompt_sequence_table() + layout_.rings);
  cache.max_pages = max_pages_;
  return cache;
}

LayerCache CudaDevice::expanded(const LayerCache& cache, int window) {
  LayerCache expanded = cache;
  expanded.memory = kv_expanded_.data();
  expanded.index_in_kind = 0;
  expanded.layers_of_kind = 1;
  launch_kv_expand(cache, expanded, window, prompt_sequence_table(), prompt_sequences_,
                   most_blocks_before_chunk(longest_past_, window), stream_);
  return expanded;
}

QuantisedRows CudaDevice::quantised_rows() const {
  const std::size_t codes = kv_codes_.size() / 2;
  const std::size_t scales = kv_scales_.size() / 2;
  return {kv_codes_.data(), kv_codes_.data() + codes, kv_scales_.data(), kv_scales_.data() + scales};
}

const PromptSequence* CudaDevice::prompt_sequence_table() const {
  return reinterpret_cast<const PromptSequence*>(prompt_inputs_.data() + 2 * max_rows_);
}

void CudaDevice::qkv(const Batch& /*batch*/, int layer) {
  const DecodeLayer& weights = weights_.layers()[size(layer)];
  const float eps = static_cast<float>(config_.rms_norm_eps);
  // The other layers' input was normalised at the end of the layer before.
  if (layer == 0)
    launch_normalize(x_.data(), nullptr, weights.attention_norm, eps, prompt_rows_, config_.hidden_size, normed_.data(),
                     stream_);
  const RopeOutput output{.position = prompt_inputs_.data() + max_rows_,
                          .rope = rope_.data(),
                          .query_scale = static_cast<float>(1.0 / std::sqrt(config_.query_pre_attn_scalar)),
                          .heads = config_.heads,
                          .kv_heads = config_.kv_heads,
                          .head_dim = config_.head_dim,
                          .q = q_.data(),
                          .k = k_.data(),
                          .v = v_.data()};
  with_bf16(weights.qkv, weights_.types().layers, [&](const __nv_bfloat16* qkv, int, int) {
    gemm_.multiply_qkv(output, normed_.data(), qkv, prompt_rows_, config_.hidden_size, scratch_.data(), stream_);
  });
  if (layout_.type == KvType::kQ8) {
    launch_kv_quantise(k_.data(), v_.data(), prompt_rows_, config_.kv_heads, config_.head_dim, quantised_rows(),
                       stream_);
  }
}

void CudaDevice::attend(const Batch& /*batch*/, int layer) {
  const LayerCache cache = layer_cache(layer);
  const bool is_quantised = layout_.type == KvType::kQ8;
  PromptAttention attention{};
  attention.heads = config_.heads;
  attention.window = cache.is_local ? layout_.window : kNoWindow;
  attention.cache = is_quantised ? expanded(cache, attention.window) : cache;
  attention.softcap = config_.attention_softcap.value_or(0.0f);
  attention.q = q_.data();
  attention.k = k_.data();
  attention.v = v_.data();
  attention.sequences = prompt_sequence_table();
  attention.out = attended_.data();
  attention.uses_wgmma = gemm_.uses_wgmma();
  launch_prompt_attention(attention, prompt_sequences_, longest_sequence_, stream_);
  if (is_quantised) {
    launch_kv_commit(quantised_rows(), cache, attention.sequences, prompt_sequences_, longest_sequence_, stream_);
  } else {
    launch_kv_commit(k_.data(), v_.data(), cache, attention.sequences, prompt_sequences_, longest_sequence_, stream_);
  }
}

void CudaDevice::attention_out(const Batch& /*batch*/, int layer) {
  const DecodeLayer& weights = weights_.layers()[size(layer)];
  multiply(projected_.data(), attended_.data(), weights.attention_out, weights_.types().layers, prompt_rows_);
  launch_add_normalized(projected_.data(), weights.attention_post_norm, weights.mlp_norm,
                        static_cast<float>(config_.rms_norm_eps), prompt_rows_, config_.hidden_size, x_.data(),
                        normed_.data(), stream_);
}

void CudaDevice::mlp(const Batch& /*batch*/, int layer) {
  const DecodeLayer& weights = weights_.layers()[size(layer)];
  const bool is_last = layer + 1 == config_.layer_count();
  const float* next_norm = is_last ? nullptr : weights_.layers()[size(layer) + 1].attention_norm;
  const WeightType type = weights_.types().layers;
  with_bf16(weights.gate_up, type, [&](const __nv_bfloat16* gate_up, int first, int gates) {
    gemm_.multiply_geglu(activated_.data() + first, normed_.data(), gate_up, prompt_rows_, gates, config_.hidden_size,
                         scratch_.data(), stream_, /*pitch=*/config_.intermediate_size);
  });
  multiply(projected_.data(), activated_.data(), weights.down, type, prompt_rows_);
  launch_add_normalized(projected_.data(), weights.mlp_post_norm, next_norm, static_cast<float>(config_.rms_norm_eps),
                        prompt_rows_, config_.hidden_size, x_.data(), next_norm == nullptr ? nullptr : normed_.data(),
                        stream_);
}

// --- logits and answers ---

void CudaDevice::logits(const Batch& batch, int first, int count) {
  logits_row_of_.clear();
  int prompt_outputs = 0;
  Inputs* inputs = nullptr;
  for (int i = 0; i < count; ++i) {
    const int row = batch.outputs[size(first + i)].row;
    if (batch.rows[size(row)].kind == RowKind::kGenerated) {
      logits_row_of_.push_back(decode_row_of_[size(row)]);
      continue;
    }
    if (inputs == nullptr) inputs = &next_inputs();
    inputs->values[size(prompt_outputs)] = prompt_row_of_[size(row)];
    inputs->values[size(logit_rows_ + prompt_outputs)] = batch.rows[size(row)].position;
    logits_row_of_.push_back(decode_rows_ + prompt_outputs++);
  }
  if (prompt_outputs == 0) return;

  int* wanted_rows = prompt_inputs_.data() + prompt_inputs_.size() - logit_rows_;
  send(wanted_rows, inputs->values.data(), size(prompt_outputs), stream_);
  send(decode_positions() + decode_rows_, inputs->values.data() + logit_rows_, size(prompt_outputs), stream_);
  inputs->is_sent.record(stream_);

  launch_normalize(x_.data(), wanted_rows, weights_.final_norm(), static_cast<float>(config_.rms_norm_eps),
                   prompt_outputs, config_.hidden_size, normed_.data(), stream_);
  const std::size_t pitch = logits_pitch(config_);
  float* out = logits_.data() + size(decode_rows_) * pitch;
  // Outputs beyond the vocabulary come from whatever lies behind the head, or are zeros, and are never looked at.
  StreamedMatrix head = weights_.head();
  head.outputs = static_cast<int>(pitch);
  multiply(out, normed_.data(), head, weights_.types().embed, prompt_outputs);
  launch_soft_cap(out, config_.final_softcap.value_or(0.0f), prompt_outputs, config_.vocab_size, pitch, stream_);
}

SampleArguments CudaDevice::sample_arguments() const {
  SampleArguments arguments{};
  arguments.logits = logits_.data();
  arguments.pitch = logits_pitch(config_);
  arguments.vocab = config_.vocab_size;
  arguments.row_count = sample_row_count_.data();
  arguments.rows = sample_rows_.data();
  arguments.recent = recent_.data();
  arguments.token = decode_tokens();
  arguments.position = decode_positions();
  arguments.outputs = sample_outputs_.data();
  arguments.top = sample_top_.data();
  arguments.top_pitch = kMaxTopLogprobs;
  arguments.workspace = sample_workspace_.data();
  arguments.workspace_rows = static_cast<int>(sample_outputs_.size());
  return arguments;
}

void CudaDevice::sample(const Batch& batch, int first, int count, std::span<Output> answers) {
  Pending& pending = pending_[next_pending_++ % pending_.size()];
  collect(pending);
  pending.answers = answers;
  pending.top_counts.clear();
  const auto outputs = std::span(batch.outputs).subspan(size(first), size(count));
  int most_top = 0;
  for (const OutputRow& output : outputs) {
    assert(output.top_logprobs <= kMaxTopLogprobs);
    pending.top_counts.push_back(std::min(output.top_logprobs, config_.vocab_size));
    most_top = std::max(most_top, pending.top_counts.back());
  }

  if (!is_sampled_) {
    for (int i = 0; i < count; ++i) {
      const OutputRow& output = outputs[size(i)];
      const bool is_generated = batch.rows[size(output.row)].kind == RowKind::kGenerated;
      SampleRow row;
      row.sampling = output.sampling.value_or(Sampling{});
      row.logits_row = row.batch_row = logits_row_of_[size(i)];
      row.target = output.target;
      row.top_logprobs = pending.top_counts[size(i)];
      row.is_drawn = output.sampling.has_value() ? 1 : 0;
      row.advances = is_generated && output.sampling ? 1 : 0;
      pending.rows[size(i)] = row;
      const auto recent = output.recent.last(std::min<std::size_t>(output.recent.size(), kRepeatWindow));
      std::copy(recent.begin(), recent.end(), pending.recent[size(i)].tokens);
      pending.recent[size(i)].count = static_cast<int>(recent.size());
    }
    // Only what was drawn for every row of a step can be the next step's input.
    const bool all_advance = std::all_of(pending.rows.data(), pending.rows.data() + count,
                                         [](const SampleRow& row) { return row.advances != 0; });
    if (!all_advance || size(count) != next_positions_.size()) next_positions_.clear();
    pending.row_count[0] = count;
    send(sample_rows_.data(), pending.rows.data(), size(count), stream_);
    // A step that continues one with other answers wanted still has its recent tokens on the GPU only.
    if (!is_continued_) send(recent_.data(), pending.recent.data(), size(count), stream_);
    send(sample_row_count_.data(), pending.row_count.data(), 1, stream_);
    launch_sample(sample_arguments(), count, stream_);
  }

  const auto fetch = [&](auto* to, const auto* from, std::size_t elements) {
    check_cuda(cudaMemcpyAsync(to, from, elements * sizeof(*from), cudaMemcpyDeviceToHost, stream_));
  };
  fetch(pending.outputs.data(), sample_outputs_.data(), size(count));
  if (most_top > 0) {
    if (pending.top.size() == 0) pending.top = PinnedBuffer<TokenLogprob>(sample_top_.size());
    fetch(pending.top.data(), sample_top_.data(), size(count) * kMaxTopLogprobs);
  }
  for (int i = 0; i < count; ++i) {
    const std::span<float> wanted = outputs[size(i)].logits;
    if (wanted.empty()) continue;
    const int row = is_sampled_ ? decode_row_of_[size(outputs[size(i)].row)] : logits_row_of_[size(i)];
    fetch(wanted.data(), logits_.data() + size(row) * logits_pitch(config_), wanted.size());
  }
  pending.is_done.record(stream_);
  pending.is_open = true;
}

void CudaDevice::collect(Pending& pending) {
  if (!pending.is_open) return;
  pending.is_done.synchronize();
  for (std::size_t i = 0; i < pending.answers.size(); ++i) {
    const SampleOutput& output = pending.outputs[i];
    pending.answers[i].token = static_cast<int>(output.token);
    pending.answers[i].logprob = output.logprob;
    const TokenLogprob* top = pending.top.data() + i * kMaxTopLogprobs;
    if (pending.top_counts[i] > 0) pending.answers[i].top.assign(top, top + pending.top_counts[i]);
  }
  pending.is_open = false;
}

void CudaDevice::finish(int calls_ahead) {
  const std::size_t open = pending_.size() - size(calls_ahead);
  for (std::size_t i = 0; i < open; ++i) collect(pending_[(next_pending_ + i) % pending_.size()]);
}

// --- the cache ---

void CudaDevice::copy_ring(int from, int to) {
  const std::size_t bytes = layout_.rings == 0 ? 0 : rings_.size() / size(layout_.rings);
  check_cuda(cudaMemcpyAsync(rings_.data() + size(to) * bytes, rings_.data() + size(from) * bytes, bytes,
                             cudaMemcpyDeviceToDevice, stream_));
}

void CudaDevice::copy_page(int from, int to) {
  const std::size_t bytes = pages_.size() / size(layout_.pages);
  check_cuda(cudaMemcpyAsync(pages_.data() + size(to) * bytes, pages_.data() + size(from) * bytes, bytes,
                             cudaMemcpyDeviceToDevice, stream_));
}

std::size_t CudaDevice::slot_bytes() const {
  return size(config_.local_layer_count()) * position_bytes(config_, layout_.type);
}

void CudaDevice::copy_slots(int ring, int slot, int count, std::byte* host, cudaMemcpyKind direction) {
  // Strided copies: in all local layers, keys and values, and heads, the slots lie equally far from the next.
  const std::size_t height = 2 * size(config_.local_layer_count()) * size(config_.kv_heads);
  const std::size_t pitch = size(layout_.ring_slots) * head_bytes(layout_.type, config_.head_dim);
  const auto copy = [&](std::size_t offset, std::size_t width) {
    std::byte* const in_ring = rings_.data() + size(ring) * height * pitch + offset;
    if (direction == cudaMemcpyDeviceToHost) {
      check_cuda(cudaMemcpy2DAsync(host, width, in_ring, pitch, width, height, direction, stream_));
    } else {
      check_cuda(cudaMemcpy2DAsync(in_ring, pitch, host, width, width, height, direction, stream_));
    }
    host += width * height;
  };
  if (layout_.type == KvType::kQ8) {
    // Block by block, in which scales follow codes.
    const std::size_t codes = size(config_.head_dim);
    const std::size_t block_bytes = size(kPagePositions) * head_bytes(layout_.type, config_.head_dim);
    for (int end = slot + count; slot < end; slot = (slot / kPagePositions + 1) * kPagePositions) {
      const int in_block = slot % kPagePositions;
      const std::size_t slots = size(std::min(kPagePositions - in_block, end - slot));
      const std::size_t block = size(slot / kPagePositions) * block_bytes;
      copy(block + size(in_block) * codes, slots * codes);
      copy(block + size(kPagePositions) * codes + size(in_block) * sizeof(float), slots * sizeof(float));
    }
  } else {
    const std::size_t slot_width = head_bytes(layout_.type, config_.head_dim);
    copy(size(slot) * slot_width, size(count) * slot_width);
  }
  stream_.synchronize();
}

void CudaDevice::read_slots(int ring, int slot, int count, std::span<std::byte> out) {
  copy_slots(ring, slot, count, out.data(), cudaMemcpyDeviceToHost);
}

void CudaDevice::write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) {
  copy_slots(ring, slot, count, const_cast<std::byte*>(bytes.data()), cudaMemcpyHostToDevice);
}

}  // namespace gemma::cuda
