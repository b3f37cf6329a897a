// Choosing tokens on the GPU, and their log-probabilities.
//
// The first kernel reads all logits of all rows, 16 groups of 256 a block. For each group it keeps the largest logit
// and the sum of exponentials relative to it, for the log-probabilities, and the largest key (select.cuh). The block of
// a row that finishes last sums up, and answers the row if it can: the greedy choice is the largest of the groups'
// keys, and a draw from few candidates begins with listing them.
//
// A draw from many candidates needs the probability of every token. The second kernel computes them and adds them up in
// bins 1/32 of a logit wide, below the largest. Again the last block of a row finishes: each border (the candidate of
// rank top_k, the last one within top_p, the drawn one) lies in some bin, whose tokens are listed, put in order and
// walked along.
//
// Probabilities are relative to the likeliest token's and held as integers, multiples of 2^-45: sums do not depend on
// the order in which blocks and threads come.
//
// Bytes: all logits once, from the L2 cache where they have just been written; twice for a draw from many candidates.

#include <string>

#include "cuda_error.h"
#include "device/philox.h"
#include "gemma/error.h"
#include "ptx.cuh"
#include "sample.cuh"
#include "select.cuh"

namespace gemma {
namespace {

/// With so many candidates or fewer they are listed right away.
constexpr int kFewCandidates = 256;
static_assert(kFewCandidates <= kSampleThreads && kMaxTopLogprobs <= kListKeys);

constexpr float kBinsPerLogit = 32.0f;

/// Mass of the likeliest candidate. That of a whole row fits into 64 bits.
constexpr double kUnitMass = 0x1p45;
static_assert(kMaxSampledVocab * kUnitMass <= 0x1p63);

// --- work space ---

/// What the first kernel leaves to the second.
struct RowState {
  double normaliser;  // log(sum(exp(logits)))
  Key best;           // as the draw sees it
  std::uint64_t total_mass;
  std::uint64_t mass_above_min_p;
  int draws_from_many;   // the second kernel must answer this row
  unsigned arrivals[2];  // blocks that are done with the row, of either kernel; zero between steps
};

/// All work space; rows come first in every shape.
struct Workspace {
  RowState* state;          // [rows]
  float2* group_sums;       // [rows, groups]: the largest logit, and the sum of exponentials relative to it
  Key* model_largest;       // [rows, groups]: the groups' largest keys of the logits as they are
  Key* drawn_largest;       // [rows, groups]: as the draw sees them
  std::uint64_t* bin_mass;  // [rows, kBins]
  unsigned* bin_count;      // [rows, kBins]: only where there is a top_k
};

int groups_of(int vocab) { return (vocab + kGroupLogits - 1) / kGroupLogits; }
int blocks_of(int vocab) { return (groups_of(vocab) + kSampleWarps - 1) / kSampleWarps; }

/// Deals out the work space. @param bytes  receives the size of all.
Workspace lay_out(void* memory, int max_rows, int vocab, std::size_t& bytes) {
  const auto rows = static_cast<std::size_t>(max_rows);
  const auto groups = static_cast<std::size_t>(groups_of(vocab));
  std::size_t offset = 0;
  const auto take = [&]<class T>(T*& array, std::size_t count) {
    array = memory == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<char*>(memory) + offset);
    offset += (count * sizeof(T) + 255) / 256 * 256;
  };
  Workspace workspace;
  take(workspace.state, rows);
  take(workspace.group_sums, rows * groups);
  take(workspace.model_largest, rows * groups);
  take(workspace.drawn_largest, rows * groups);
  take(workspace.bin_mass, rows * kBins);
  take(workspace.bin_count, rows * kBins);
  bytes = offset;
  return workspace;
}

// --- weights ---

/// Out of line, because it is long and the loops that need it are unrolled.
__device__ __attribute__((noinline)) double exponential(double x) { return exp(x); }

/// The probability of candidates relative to the likeliest one.
struct Weights {
  double best;
  double inverse_temperature;

  __device__ Weights(float best_logit, float temperature) : best(best_logit), inverse_temperature(1.0 / temperature) {}

  /// 0 where the mass is 0, without computing it.
  __device__ double weight(float logit) const {
    const double exponent = (logit - best) * inverse_temperature;
    return exponent >= -32 ? exponential(exponent) : 0;
  }
  __device__ static std::uint64_t mass(double weight) { return __double2ull_rn(weight * kUnitMass); }
  __device__ std::uint64_t operator()(Key key) const { return mass(weight(logit_of(key))); }
};

/// The prefix of candidates that top-p keeps of `all`.
__device__ Goal top_p_goal(float top_p, std::uint64_t all) {
  return {true, max(std::uint64_t{1}, static_cast<std::uint64_t>(__double2ull_ru(top_p * static_cast<double>(all))))};
}

/// The drawn candidate is the first that brings the mass above the random number times the mass of all that are kept.
__device__ Goal draw_goal(std::uint64_t kept, std::uint32_t random) {
  return {true, __umul64hi(kept, std::uint64_t{random} << 32) + 1};
}

// --- one row ---

/// What the threads of a block know of the row they work on.
struct RowWork {
  const SampleArguments& arguments;
  const Workspace& workspace;
  int row;
  SampleRow wanted;
  LogitsView model, drawn;

  /// @param recent  [kRepeatWindow] in shared memory. By all threads of the block together.
  __device__ RowWork(const SampleArguments& all_arguments, const Workspace& all_workspace, int row_index, int* recent)
      : arguments(all_arguments), workspace(all_workspace), row(row_index), wanted(all_arguments.rows[row_index]) {
    model = {arguments.logits + wanted.logits_row * arguments.pitch, arguments.vocab, kLargestFloat, recent, 0, 1.0f};
    drawn = model;
    if (!wanted.is_drawn) return;
    // The greedy choice only compares.
    if (is_greedy()) drawn.largest = INFINITY;
    drawn.penalty = wanted.sampling.repeat_penalty;
    if (drawn.penalty != 1.0f) {
      const RecentTokens& tokens = arguments.recent[row];
      drawn.recent_count = min(tokens.count, kRepeatWindow);
      if (static_cast<int>(threadIdx.x) < drawn.recent_count) recent[threadIdx.x] = tokens.tokens[threadIdx.x];
      __syncthreads();
    }
  }

  __device__ bool is_greedy() const { return wanted.sampling.temperature <= 0; }
  __device__ int candidates() const {
    return wanted.sampling.top_k > 0 ? min(wanted.sampling.top_k, model.vocab) : model.vocab;
  }
  __device__ std::uint32_t random() const {
    return random_word(wanted.sampling.seed, arguments.position[wanted.batch_row]);
  }

  __device__ int groups() const { return model.groups(); }
  __device__ RowState& state() const { return workspace.state[row]; }
  __device__ float2* group_sums() const { return workspace.group_sums + static_cast<std::size_t>(row) * groups(); }
  __device__ Key* model_largest() const { return workspace.model_largest + static_cast<std::size_t>(row) * groups(); }
  __device__ Key* drawn_largest() const { return workspace.drawn_largest + static_cast<std::size_t>(row) * groups(); }
  __device__ std::uint64_t* bin_mass() const { return workspace.bin_mass + static_cast<std::size_t>(row) * kBins; }
  __device__ unsigned* bin_count() const { return workspace.bin_count + static_cast<std::size_t>(row) * kBins; }

  __device__ double logprob(int token, double normaliser) const {
    const float logit = usable(__ldcg(model.logits + token), model.largest);
    return isinf(logit) ? static_cast<double>(logit) : logit - normaliser;
  }

  /// Writes the answer, and makes the drawn token the next step's input. By one thread.
  __device__ void answer(int token, double normaliser) const {
    const int asked = wanted.target >= 0 ? wanted.target : token;
    arguments.outputs[row] = {asked >= 0 ? logprob(asked, normaliser) : 0.0, token};
    if (token < 0 || !wanted.advances) return;
    arguments.token[wanted.batch_row] = token;
    ++arguments.position[wanted.batch_row];
    RecentTokens& recent = arguments.recent[row];
    recent.tokens[recent.count % kRepeatWindow] = token;
    ++recent.count;
  }
};

/// Whether this is the last block to be done with the row; it can then read what the others wrote. Must be asked once a
/// block.
__device__ bool is_last_block(unsigned* arrivals) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = fetch_add_acquire_release(arrivals, 1) + 1 == gridDim.x;
    if (is_last) *arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// --- the first kernel ---

/// By one warp: what there is to know of a group.
__device__ void scan_group(const RowWork& work, int group) {
  float raw[kLaneLogits];
  work.model.load(group, raw);

  float x[kLaneLogits];
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLaneLogits; ++i) {
    x[i] = usable(raw[i], work.model.largest);
    largest = fmaxf(largest, x[i]);
  }
  largest = warp_max(largest);
  float sum = 0;
  if (largest > -INFINITY) {
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) sum += expf(x[i] - largest);
  }
  sum = warp_sum(sum);
  if (sample_lane() == 0) work.group_sums()[group] = {largest, sum};

  const auto keep_largest = [&](const LogitsView& view, const float(&logits)[kLaneLogits], Key* group_largest) {
    Key key = 0;
#pragma unroll
    for (int i = 0; i < kLaneLogits; ++i) key = max(key, view.key(group, i, logits[i]));
    key = warp_largest(key);
    if (sample_lane() == 0) group_largest[group] = key;
  };
  if (work.wanted.top_logprobs > 0) keep_largest(work.model, x, work.model_largest());
  if (work.wanted.is_drawn) {
    work.drawn.prepare(group, raw);
    keep_largest(work.drawn, raw, work.drawn_largest());
  }
}

/// log(sum(exp(logits))) of the row; minus infinity if there is nothing to sum.
__device__ double log_sum_exp(const float2* group_sums, int groups) {
  float largest = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < groups; i += kSampleThreads)
    largest = fmaxf(largest, __ldcg(group_sums + i).x);
  largest = block_max(largest);
  if (largest == -INFINITY) return -INFINITY;
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < groups; i += kSampleThreads) {
    const float2 group = __ldcg(group_sums + i);
    sum += static_cast<double>(expf(group.x - largest)) * group.y;
  }
  return largest + log(block_sum(sum));
}

__device__ void write_top_logprobs(const RowWork& work, Selection& shared, double normaliser) {
  const int count = min(min(work.wanted.top_logprobs, kMaxTopLogprobs), work.model.vocab);
  list_largest(shared, {work.model, work.model_largest()}, count);
  TokenLogprob* top = work.arguments.top + static_cast<std::size_t>(work.row) * work.arguments.top_pitch;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads) {
    const float logit = logit_of(shared.list[i]);
    top[i] = {token_of(shared.list[i]), isinf(logit) ? logit : static_cast<float>(logit - normaliser)};
  }
}

/// Draws from at most kFewCandidates.
__device__ int draw_from_few(const RowWork& work, Selection& shared, const Weights& weights) {
  const Sampling& sampling = work.wanted.sampling;
  const int count = work.candidates();
  list_largest(shared, {work.drawn, work.drawn_largest()}, count);

  const int i = static_cast<int>(threadIdx.x);
  const double weight = i < count ? weights.weight(logit_of(shared.list[i])) : 0;
  const std::uint64_t mass = Weights::mass(weight);
  if (i < count) {
    shared.mass[i] = mass;
    shared.count[i] = 1;
  }
  const std::uint64_t all = block_sum(mass);
  std::uint64_t kept = all;
  if (sampling.top_p < 1) kept = find_crossing(shared, count, {}, top_p_goal(sampling.top_p, all)).through.mass;
  if (sampling.min_p > 0) kept = min(kept, block_sum(weight >= sampling.min_p ? mass : 0));
  return token_of(shared.list[find_crossing(shared, count, {}, draw_goal(kept, work.random())).index]);
}

__global__ void __launch_bounds__(kSampleThreads, 2)
    scan_kernel(const __grid_constant__ SampleArguments arguments, const __grid_constant__ Workspace workspace) {
  __shared__ Selection shared;
  __shared__ int recent[kRepeatWindow];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y);
  if (row >= *arguments.row_count) return;
  const RowWork work(arguments, workspace, row, recent);
  const int group = static_cast<int>(blockIdx.x) * kSampleWarps + sample_warp();
  if (group < work.groups()) scan_group(work, group);
  if (!is_last_block(&work.state().arrivals[0])) return;

  const double normaliser = log_sum_exp(work.group_sums(), work.groups());
  if (work.wanted.top_logprobs > 0) write_top_logprobs(work, shared, normaliser);
  int token = -1;
  bool draws_from_many = false;
  if (work.wanted.is_drawn) {
    Key best = 0;
    for (int i = static_cast<int>(threadIdx.x); i < work.groups(); i += kSampleThreads)
      best = max(best, __ldcg(work.drawn_largest() + i));
    best = block_max(best);
    // Where all logits are minus infinity, the lowest id is the largest key.
    if (work.is_greedy() || logit_of(best) == -INFINITY) {
      token = token_of(best);
    } else if (work.candidates() <= kFewCandidates) {
      token = draw_from_few(work, shared, {logit_of(best), work.wanted.sampling.temperature});
    } else {
      draws_from_many = true;
      for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
        work.bin_mass()[i] = 0;
        work.bin_count()[i] = 0;
      }
    }
    if (threadIdx.x == 0) {
      RowState& state = work.state();
      state.normaliser = normaliser;
      state.best = best;
      state.total_mass = 0;
      state.mass_above_min_p = 0;
    }
  }
  if (threadIdx.x == 0) {
    work.state().draws_from_many = draws_from_many;
    if (!draws_from_many) work.answer(token, normaliser);
  }
}

// --- the second kernel ---

/// Bins count down from the largest logit; the last one has all that is left.
__device__ int bin_of(float logit, float best) {
  return static_cast<int>(fminf((best - logit) * kBinsPerLogit, static_cast<float>(kBins - 1)));
}

/// The least order_of() a logit of this bin, or of one before it.
__device__ std::uint32_t least_order(int bin, float best) {
  std::uint32_t low = order_of(-INFINITY);
  std::uint32_t high = order_of(best);
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (bin_of(float_of(middle), best) <= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// The row's bins, filled by all blocks.
class Bins {
 public:
  __device__ Bins(const RowWork& work, Selection& shared, const Weights& weights, float best)
      : work_(work), shared_(shared), weights_(weights), best_(best) {}

  /// Adds this block's logits to the bins and to the row's sums.
  __device__ void add_block() const {
    const Sampling& sampling = work_.wanted.sampling;
    const bool is_counting = work_.candidates() < work_.model.vocab;
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
      shared_.mass[i] = 0;
      shared_.count[i] = 0;
    }
    __syncthreads();
    std::uint64_t total = 0;
    std::uint64_t above_min_p = 0;
    const int group = static_cast<int>(blockIdx.x) * kSampleWarps + sample_warp();
    if (group < work_.groups()) {
      float x[kLaneLogits];
      work_.drawn.load(group, x);
      work_.drawn.prepare(group, x);
#pragma unroll
      for (int i = 0; i < kLaneLogits; ++i) {
        if (LogitsView::token(group, i) >= work_.drawn.vocab) continue;
        const double weight = weights_.weight(x[i]);
        const std::uint64_t mass = Weights::mass(weight);
        const int bin = bin_of(x[i], best_);
        if (mass > 0) add_shared(&shared_.mass[bin], mass);
        if (is_counting) atomicAdd(&shared_.count[bin], 1u);
        total += mass;
        if (weight >= sampling.min_p) above_min_p += mass;
      }
    }
    total = block_sum(total);
    above_min_p = block_sum(above_min_p);
    if (threadIdx.x == 0) {
      add(&work_.state().total_mass, total);
      add(&work_.state().mass_above_min_p, above_min_p);
    }
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
      if (shared_.mass[i] != 0) add(work_.bin_mass() + i, shared_.mass[i]);
      if (shared_.count[i] != 0) atomicAdd(work_.bin_count() + i, shared_.count[i]);
    }
  }

  /// The candidate with which the goal is reached (its place in the list is the crossing's index).
  __device__ Crossing find(const Goal& goal) const {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
      shared_.mass[i] = __ldcg(work_.bin_mass() + i);
      shared_.count[i] = __ldcg(work_.bin_count() + i);
    }
    const Crossing bin = find_crossing(shared_, kBins, {}, goal);
    KeyRange range;
    range.lowest = Key{least_order(bin.index, best_)} << 32;
    if (bin.index > 0) range.highest = (Key{least_order(bin.index - 1, best_)} << 32) - 1;
    Measure above = bin.before;
    const int count = list_around(shared_, {work_.drawn, work_.drawn_largest()}, range, above, goal, weights_);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads) {
      shared_.mass[i] = weights_(shared_.list[i]);
      shared_.count[i] = 1;
    }
    return find_crossing(shared_, count, above, goal);
  }

 private:
  __device__ static void add(std::uint64_t* sum, std::uint64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
  }

  const RowWork& work_;
  Selection& shared_;
  const Weights& weights_;
  float best_;
};

__global__ void __launch_bounds__(kSampleThreads, 2)
    draw_from_many_kernel(const __grid_constant__ SampleArguments arguments,
                          const __grid_constant__ Workspace workspace) {
  __shared__ Selection shared;
  __shared__ int recent[kRepeatWindow];
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.y);
  if (row >= *arguments.row_count || __ldcg(&workspace.state[row].draws_from_many) == 0) return;
  const RowWork work(arguments, workspace, row, recent);
  const Sampling& sampling = work.wanted.sampling;
  const float best = logit_of(__ldcg(&work.state().best));
  const Weights weights(best, sampling.temperature);
  const Bins bins(work, shared, weights, best);
  bins.add_block();
  if (!is_last_block(&work.state().arrivals[1])) return;

  std::uint64_t all = __ldcg(&work.state().total_mass);
  if (work.candidates() < work.model.vocab)
    all = bins.find({false, static_cast<std::uint64_t>(work.candidates())}).through.mass;
  std::uint64_t kept = all;
  if (sampling.top_p < 1) kept = bins.find(top_p_goal(sampling.top_p, all)).through.mass;
  if (sampling.min_p > 0) kept = min(kept, __ldcg(&work.state().mass_above_min_p));
  const Crossing drawn = bins.find(draw_goal(kept, work.random()));
  if (threadIdx.x == 0) work.answer(token_of(shared.list[drawn.index]), __ldcg(&work.state().normaliser));
}

void launch(void (*kernel)(SampleArguments, Workspace), const SampleArguments& arguments, const Workspace& workspace,
            int max_rows, bool starts_early, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks_of(arguments.vocab)), static_cast<unsigned>(max_rows));
  config.blockDim = dim3(kSampleThreads);
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = starts_early ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments, workspace));
}

bool has_programmatic_launch() {
  int device = 0;
  int major = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
}

}  // namespace

std::size_t sample_workspace_bytes(int max_rows, int vocab) {
  std::size_t bytes = 0;
  lay_out(nullptr, max_rows, vocab, bytes);
  return bytes;
}

void launch_sample(const SampleArguments& arguments, int max_rows, cudaStream_t stream) {
  if (arguments.vocab < 1 || arguments.vocab > kMaxSampledVocab) {
    throw Error("the GPU sampler takes vocabularies of 1 to " + std::to_string(kMaxSampledVocab) +
                " tokens, and this model has " + std::to_string(arguments.vocab) + "; use --device cpu");
  }
  if (max_rows < 1 || max_rows > 65535) {
    throw Error("the GPU sampler takes 1 to 65535 rows at once, and was asked for " + std::to_string(max_rows));
  }
  if (max_rows > arguments.workspace_rows) {
    throw Error("the GPU sampler was asked for " + std::to_string(max_rows) + " rows with work space for " +
                std::to_string(arguments.workspace_rows));
  }
  std::size_t bytes = 0;
  const Workspace workspace = lay_out(arguments.workspace, arguments.workspace_rows, arguments.vocab, bytes);
  launch(scan_kernel, arguments, workspace, max_rows, false, stream);
  launch(draw_from_many_kernel, arguments, workspace, max_rows, has_programmatic_launch(), stream);
}

}  // namespace gemma
