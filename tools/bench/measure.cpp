#include "bench/measure.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "runtime/kv_cache.h"
#include "runtime/transformer.h"

namespace gemma {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Of all threads of this process.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Sequences in a cache, which are given back at the end.
class Sequences {
 public:
  Sequences(Device& device, int count, int max_length) : cache_(device) {
    for (int i = 0; i < count; ++i) ids_.push_back(cache_.create(max_length));
  }

  KvCache& cache() { return cache_; }
  const std::vector<KvCache::Id>& ids() const { return ids_; }

  /// The next rows of a prompt. Its tokens are spread over the vocabulary, so that no cache holds their embeddings.
  Batch prompt_rows(KvCache::Id id, int rows, int vocab_size) {
    Batch batch;
    batch.sequences.push_back(cache_.extend(id, rows));
    for (int i = 0; i < rows; ++i) {
      const int position = batch.sequences[0].position + i;
      const int token = static_cast<int>((position * 7919ll + 2) % vocab_size);
      batch.rows.push_back({.token = token, .position = position, .sequence = 0, .kind = RowKind::kPrompt});
    }
    return batch;
  }

 private:
  KvCache cache_;
  std::vector<KvCache::Id> ids_;
};

OutputRow greedy(int row) { return {.row = row, .sampling = Sampling{.temperature = 0}}; }

void read_prompt(const Model& model, Device& device, Sequences& sequences, KvCache::Id id, int tokens, int chunk) {
  for (int read = 0; read < tokens; read += chunk) {
    const int rows = std::min(chunk, tokens - read);
    Batch batch = sequences.prompt_rows(id, rows, model.config.vocab_size);
    if (read + rows < tokens) {
      begin_forward(model.config, device, batch, {});
    } else {
      batch.outputs.push_back(greedy(rows - 1));
      forward(model.config, device, batch);
    }
  }
}

/// Passes all calls on, and adds up how long each step of the forward pass takes.
class StepClock final : public Device {
 public:
  explicit StepClock(Device& device) : device_(device) {}

  std::vector<PhaseTime> times() const { return {times_.begin(), times_.end()}; }

  std::string description() const override { return device_.description(); }
  int max_rows() const override { return device_.max_rows(); }
  int max_logit_rows() const override { return device_.max_logit_rows(); }
  const KvLayout& kv_layout() const override { return device_.kv_layout(); }
  bool decode_at_once(const Batch& batch) override { return device_.decode_at_once(batch); }

  void embed(const Batch& batch) override {
    timed(0, [&] { device_.embed(batch); });
  }
  void qkv(const Batch& batch, int layer) override {
    timed(1, [&] { device_.qkv(batch, layer); });
  }
  void attend(const Batch& batch, int layer) override {
    timed(2, [&] { device_.attend(batch, layer); });
  }
  void attention_out(const Batch& batch, int layer) override {
    timed(3, [&] { device_.attention_out(batch, layer); });
  }
  void mlp(const Batch& batch, int layer) override {
    timed(4, [&] { device_.mlp(batch, layer); });
  }
  void logits(const Batch& batch, int first, int count) override {
    timed(5, [&] { device_.logits(batch, first, count); });
  }
  void sample(const Batch& batch, int first, int count, std::span<Output> answers) override {
    timed(6, [&] { device_.sample(batch, first, count, answers); });
  }
  bool runs_ahead() const override { return device_.runs_ahead(); }
  void finish(int calls_ahead) override { device_.finish(calls_ahead); }
  void synchronize() override { device_.synchronize(); }
  void copy_ring(int from, int to) override { device_.copy_ring(from, to); }
  void copy_page(int from, int to) override { device_.copy_page(from, to); }
  std::size_t slot_bytes() const override { return device_.slot_bytes(); }
  void read_slots(int ring, int slot, int count, std::span<std::byte> out) override {
    device_.read_slots(ring, slot, count, out);
  }
  void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) override {
    device_.write_slots(ring, slot, count, bytes);
  }

 private:
  template <class Work>
  void timed(std::size_t step, const Work& work) {
    const double start = now();
    work();
    device_.synchronize();
    times_[step].busy_s += now() - start;
  }

  Device& device_;
  std::array<PhaseTime, 7> times_ = {
      {{"embed"}, {"qkv"}, {"attend"}, {"attention_out"}, {"mlp"}, {"logits"}, {"sample"}}};
};

}  // namespace

Timings summarize(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

int chunk_of(const BenchDevice& bench) { return bench.chunk > 0 ? bench.chunk : bench.is_gpu ? 4096 : 512; }

KvType kv_type_of(const BenchDevice& bench) {
  return bench.kv_type.value_or(bench.is_gpu ? KvType::kBf16 : KvType::kF32);
}

std::unique_ptr<Device> make_device(const BenchDevice& bench, const Model& model, int context, int sequences) {
  const KvLayout kv = plan_kv_cache(model.config.window, context, sequences, kv_type_of(bench));
  const int max_rows = std::max(std::min(chunk_of(bench), context), sequences);
  return bench.is_gpu ? make_cuda_device(model, {.ordinal = bench.gpu, .max_rows = max_rows, .kv = kv})
                      : make_cpu_device(model, {.threads = bench.threads, .max_rows = max_rows, .kv = kv});
}

Timings measure_decode(const Model& model, Device& device, int context, int rows, int chunk, int steps,
                       double* host_share) {
  constexpr int kWarmUp = 3;
  Sequences sequences(device, rows, context + kWarmUp + steps);
  for (const KvCache::Id id : sequences.ids()) read_prompt(model, device, sequences, id, context, chunk);

  std::vector<double> seconds;
  std::vector<Output> answers[2];
  double last = 0, first = 0, cpu_at_first = 0;
  int begun = 0;
  for (int i = 0; i < kWarmUp + steps; ++i) {
    const int until = device.runs_ahead() ? std::min(i + 2, kWarmUp + steps) : i + 1;
    for (; begun < until; ++begun) {
      const int token = begun == 0 || !device.runs_ahead() ? 2 : kSampledToken;
      Batch batch;
      for (int row = 0; row < rows; ++row) {
        SequenceRows sequence = sequences.cache().extend(sequences.ids()[static_cast<std::size_t>(row)], 1);
        sequence.first_row = row;
        batch.sequences.push_back(sequence);
        batch.rows.push_back(
            {.token = token, .position = sequence.position, .sequence = row, .kind = RowKind::kGenerated});
        batch.outputs.push_back(greedy(row));
      }
      answers[begun % 2].assign(static_cast<std::size_t>(rows), {});
      begin_forward(model.config, device, batch, answers[begun % 2]);
    }
    device.finish(begun - i - 1);
    const double time = now();
    if (i >= kWarmUp) seconds.push_back(time - last);
    last = time;
    if (i == kWarmUp - 1) first = time, cpu_at_first = cpu_seconds();
  }
  if (host_share != nullptr) *host_share = (cpu_seconds() - cpu_at_first) / (last - first);
  return summarize(std::move(seconds));
}

Timings measure_prompt(const Model& model, Device& device, int tokens, int chunk, int repeats) {
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    Sequences sequences(device, 1, tokens);
    const double start = now();
    read_prompt(model, device, sequences, sequences.ids()[0], tokens, chunk);
    // The first round touches the pages of weights, cache and work space.
    if (repeat > 0) seconds.push_back(now() - start);
  }
  return summarize(std::move(seconds));
}

std::vector<PhaseTime> profile_decode(const Model& model, Device& device, int context, int chunk, int steps) {
  Sequences sequences(device, 1, context + steps);
  const KvCache::Id id = sequences.ids()[0];
  read_prompt(model, device, sequences, id, context, chunk);
  std::vector<PhaseTime> medians;
  std::vector<std::vector<double>> busy, waiting;  // of each part, in each step
  for (int i = 0; i < steps; ++i) {
    Batch batch;
    batch.sequences.push_back(sequences.cache().extend(id, 1));
    batch.rows.push_back(
        {.token = 2, .position = batch.sequences[0].position, .sequence = 0, .kind = RowKind::kGenerated});
    std::vector<PhaseTime> times = device.profile_decode(batch);
    if (times.empty()) {
      batch.outputs.push_back(greedy(0));
      StepClock clock(device);
      forward(model.config, clock, batch);
      times = clock.times();
    }
    busy.resize(times.size());
    waiting.resize(times.size());
    for (std::size_t part = 0; part < times.size(); ++part) {
      busy[part].push_back(times[part].busy_s);
      waiting[part].push_back(times[part].waiting_s);
    }
    medians = times;
  }
  for (std::size_t part = 0; part < medians.size(); ++part) {
    medians[part].busy_s = summarize(std::move(busy[part])).median;
    medians[part].waiting_s = summarize(std::move(waiting[part])).median;
  }
  return medians;
}

std::vector<PhaseTime> profile_prompt(const Model& model, Device& device, int tokens, int chunk) {
  measure_prompt(model, device, tokens, chunk, 0);  // warms up
  StepClock clock(device);
  measure_prompt(model, clock, tokens, chunk, 0);
  return clock.times();
}

double measure_attention(const Model& model, Device& device, int layer, int tokens, int chunk) {
  Sequences sequences(device, 1, tokens);
  double seconds = 0;
  for (int read = 0; read < tokens; read += chunk) {
    const Batch batch =
        sequences.prompt_rows(sequences.ids()[0], std::min(chunk, tokens - read), model.config.vocab_size);
    device.embed(batch);
    device.qkv(batch, layer);
    device.synchronize();
    const double start = now();
    device.attend(batch, layer);
    device.synchronize();
    seconds += now() - start;
  }
  return seconds;
}

}  // namespace gemma
