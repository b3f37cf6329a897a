#include "gemma/engine.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "device/cuda_support.h"
#include "device/device.h"
#include "model/check_scales.h"
#include "model/model_file.h"
#include "model/read_ahead.h"
#include "runtime/answer.h"
#include "runtime/kv_cache.h"
#include "runtime/room.h"
#include "runtime/scheduler.h"
#include "runtime/transformer.h"
#include "tokenizer/chat_template.h"

namespace gemma {
namespace {

void require_option(bool holds, const char* what) {
  if (!holds) throw Error(std::string("generation option out of range: ") + what);
}

/// What the options leave open comes from the model file, then from Gemma's own defaults.
Sampling resolve_sampling(const GenerationOptions& options, const GenerationDefaults& defaults) {
  Sampling sampling;
  sampling.temperature = options.temperature.value_or(defaults.temperature.value_or(1.0f));
  sampling.top_k = options.top_k.value_or(defaults.top_k.value_or(64));
  sampling.top_p = options.top_p.value_or(defaults.top_p.value_or(0.95f));
  sampling.min_p = options.min_p;
  sampling.repeat_penalty = options.repeat_penalty;
  // 32 bits, so that a drawn seed is easy to type again and safe in any JSON reader.
  sampling.seed = options.seed ? *options.seed : std::random_device{}();

  require_option(sampling.temperature >= 0 && std::isfinite(sampling.temperature), "temperature must be at least 0");
  require_option(sampling.top_k >= 0, "top-k must be at least 0");
  require_option(sampling.top_p > 0 && sampling.top_p <= 1, "top-p must be above 0 and at most 1");
  require_option(sampling.min_p >= 0 && sampling.min_p <= 1, "min-p must be between 0 and 1");
  require_option(sampling.repeat_penalty > 0 && std::isfinite(sampling.repeat_penalty),
                 "repeat penalty must be above 0");
  require_option(options.max_tokens >= 0, "max tokens must be at least 0");
  require_option(options.logprobs >= 0 && options.logprobs <= kMaxLogprobs, "logprobs must be between 0 and 1000");
  for (const std::string& text : options.stop) require_option(!text.empty(), "a stop text must not be empty");
  return sampling;
}

/// The GPU that a device name asks for: N in "cuda:N", 0 in "cuda"; nullopt for the CPU.
/// @param why_not_cuda  why the GPU cannot run the model; empty if it can. Then "auto" takes it.
std::optional<int> choose_gpu(const std::string& name, const std::string& why_not_cuda) {
  if (name == "cpu") return std::nullopt;
  if (name == "auto") return why_not_cuda.empty() && has_cuda_device() ? std::optional(0) : std::nullopt;
  if (name == "cuda") return 0;
  if (name.starts_with("cuda:")) {
    const std::string number = name.substr(5);
    const bool is_number =
        !number.empty() && number.size() < 4 && number.find_first_not_of("0123456789") == std::string::npos;
    if (is_number) return std::stoi(number);
  }
  throw Error("there is no device '" + name + "'; choose auto, cpu, cuda or cuda:N");
}

/// A sequence in the cache that is given back at the end of a scope.
class ScopedSequence {
 public:
  ScopedSequence(KvCache& cache, int max_length) : cache_(cache), id_(cache.create(max_length)) {}
  ~ScopedSequence() { cache_.remove(id_); }
  ScopedSequence(const ScopedSequence&) = delete;
  ScopedSequence& operator=(const ScopedSequence&) = delete;

  KvCache::Id id() const { return id_; }

 private:
  KvCache& cache_;
  KvCache::Id id_;
};

/// The next rows of a prompt, without outputs yet.
Batch next_rows(KvCache& cache, KvCache::Id id, std::span<const int> tokens) {
  Batch batch;
  batch.sequences.push_back(cache.extend(id, static_cast<int>(tokens.size())));
  int position = batch.sequences.front().position;
  for (int token : tokens) batch.rows.push_back({.token = token, .position = position++, .sequence = 0});
  return batch;
}

/// Requests that are worked on at once when as many as fit are asked for: tried first, then half of it, and so on.
constexpr int kUsualSequences = 64;
constexpr int kUsualSequencesOnCpu = 8;

/// Positions that a request is expected to take, where many share the pool of pages.
constexpr int kTypicalPositions = 2048;

/// Prompt rows of a step that also makes tokens.
constexpr int kMixedChunk = 512;
constexpr int kMixedChunkOnCpu = 128;

KvType kv_type(CacheType cache, bool is_on_gpu) {
  switch (cache) {
    case CacheType::kF32:
      return KvType::kF32;
    case CacheType::kBf16:
      return KvType::kBf16;
    case CacheType::kQ8:
      return KvType::kQ8;
    case CacheType::kAuto:
      break;
  }
  return is_on_gpu ? KvType::kBf16 : KvType::kF32;
}

/// The cache for one request of any length, and others of the typical one.
KvLayout plan_cache(int window, int context, const Room& room, KvType type) {
  KvLayout kv = plan_kv_cache(window, context, room.sequences, type);
  kv.rings = room.sequences + room.prefixes;
  if (kv.rings == 1) return kv;
  kv.pages = KvCache::pages_for(context) + room.sequences * KvCache::pages_for(std::min(context, kTypicalPositions));
  return kv;
}

/// Rows of a prompt read at once, if nobody asks for another number.
constexpr int kUsualChunk = 4096;
constexpr int kUsualChunkOnCpu = 512;

/// A chunk that nobody asked for gives way down to this one before requests do without a place, or a GPU's memory is
/// called too small.
constexpr int kShortestChunk = 512;

}  // namespace

struct Engine::State {
  Model model;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<Device> device;
  std::optional<KvCache> cache;
  std::optional<Scheduler> scheduler;
  int chunk = 0;
  EngineInfo info;
  double load_s = 0;

  explicit State(const EngineOptions& options);

  std::vector<TextToken> prompt_text(const Request& request) const;
  void check_ids(std::span<const int> ids) const;
  void score_window(std::span<const int> window, Score& score, const std::function<void(int)>& on_rows);
};

Engine::State::State(const EngineOptions& options) {
  const Stopwatch watch;
  if (options.chunk < 0) throw Error("the chunk must be at least 1 row");
  if (options.context < 0 || options.context > 1 << 24)
    throw Error("the context must be between 1 and 16777216 positions");
  if (options.window < 0) throw Error("the window must be at least 1");
  if (options.threads < 0) throw Error("the number of threads must be at least 1");
  if (options.sequences < 0 || options.sequences > EngineOptions::kMostSequences) {
    throw Error("the number of requests at once must be between 1 and " +
                std::to_string(EngineOptions::kMostSequences));
  }
  const int prefixes = options.prefixes.value_or(options.sequences == 1 ? 0 : EngineOptions::kUsualPrefixes);
  if (prefixes < 0 || prefixes > EngineOptions::kMostSequences) {
    throw Error("the number of prefixes must be between 0 and " + std::to_string(EngineOptions::kMostSequences));
  }

  model = options.model.empty() ? load_demo_model() : load_model(options.model);
  // A disk works while a GPU's context is made.
  std::optional<ReadAhead> read_ahead;
  if (!model.mapped.empty()) read_ahead.emplace(model.mapped);
  check_scales(model);
  const Config& config = model.config;
  if (options.window > config.window) {
    throw Error("the window can only be narrowed: this model's is " + std::to_string(config.window) + ", not " +
                std::to_string(options.window));
  }
  if (!model.tokenizer.empty()) {
    tokenizer.emplace(model.tokenizer);
    if (tokenizer->size() > config.vocab_size) {
      throw Error("cannot use '" + model.name + "': its tokenizer has " + std::to_string(tokenizer->size()) +
                  " pieces, but its embedding only " + std::to_string(config.vocab_size) + " rows");
    }
  }

  info.model = model.name;
  info.context = options.context != 0 ? options.context : config.context;
  info.window = options.window != 0 ? options.window : config.window;
  info.model_id = model.identity;
  info.is_chat = model.defaults.is_chat;
  info.weights_bytes = model.weights.bytes();

  const std::string why_not_cuda = why_not_on_cuda(model, kv_type(options.cache, /*is_on_gpu=*/true));
  const std::optional<int> gpu = choose_gpu(options.device, why_not_cuda);
  if (options.device == "auto" && !why_not_cuda.empty() && has_cuda_device()) info.why_not_cuda = why_not_cuda;
  const KvType type = kv_type(options.cache, gpu.has_value());
  const int usual = gpu ? kUsualSequences : kUsualSequencesOnCpu;
  const int usual_chunk = gpu ? kUsualChunk : kUsualChunkOnCpu;
  const Room most{.sequences = options.sequences != 0 ? options.sequences : usual,
                  .prefixes = prefixes,
                  .chunk = std::min(options.chunk != 0 ? options.chunk : usual_chunk, info.context)};
  const Room least{.sequences = options.sequences != 0 ? options.sequences : 1,
                   .prefixes = 0,
                   .chunk = gpu && options.chunk == 0 ? std::min(kShortestChunk, most.chunk) : most.chunk};
  device = make_with_room(most, least, [&](const Room& room) {
    chunk = room.chunk;
    info.sequences = room.sequences;
    const KvLayout kv = plan_cache(info.window, info.context, room, type);
    const int max_rows = room.chunk + room.sequences;
    return gpu ? make_cuda_device(model, {.ordinal = *gpu, .max_rows = max_rows, .kv = kv})
               : make_cpu_device(model, {.threads = options.threads, .max_rows = max_rows, .kv = kv});
  });
  read_ahead.reset();
  cache.emplace(*device);
  const int mixed_chunk = std::min(chunk, gpu ? kMixedChunk : kMixedChunkOnCpu);
  scheduler.emplace(config, *device, *cache,
                    SchedulerLimits{.parallel = info.sequences,
                                    .chunk = chunk,
                                    .mixed_chunk = mixed_chunk,
                                    .checkpoint_bytes = options.checkpoint_bytes});

  info.cache_bytes = kv_bytes(config, info.window, info.context, type).total();
  info.device_bytes = device->memory_bytes();
  info.device = device->description();
  info.device_kind = gpu ? "cuda" : "cpu";
  load_s = watch.seconds();
}

std::vector<TextToken> Engine::State::prompt_text(const Request& request) const {
  const ControlTokens control = request.options.parse_special ? ControlTokens::kParse : ControlTokens::kAsText;
  const auto chat = [&](std::span<const Message> messages) {
    if (!tokenizer) throw Error("'" + info.model + "' has no tokenizer");
    return chat_prompt(*tokenizer, messages, control);
  };
  ChatPrompt prompt;
  if (!request.tokens.empty()) {
    prompt.ids = request.tokens;
  } else if (!request.messages.empty()) {
    prompt = chat(request.messages);
  } else if (request.options.chat.value_or(model.defaults.is_chat)) {
    const Message message{.role = "user", .content = request.prompt};
    prompt = chat({&message, 1});
  } else {
    if (!tokenizer) throw Error("'" + info.model + "' has no tokenizer");
    prompt.ids = tokenizer->encode(request.prompt, control);
    if (prompt.ids.empty() || prompt.ids.front() != tokenizer->bos())
      prompt.ids.insert(prompt.ids.begin(), tokenizer->bos());
  }
  check_ids(prompt.ids);

  std::vector<TextToken> text;
  text.reserve(prompt.ids.size());
  for (int id : prompt.ids) text.push_back({id, RowKind::kPrompt});
  for (const ChatPrompt::Range& answer : prompt.answers) {
    for (int i = answer.first; i < answer.last; ++i) text[static_cast<std::size_t>(i)].kind = RowKind::kGenerated;
  }
  return text;
}

void Engine::State::check_ids(std::span<const int> ids) const {
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](int id) { return id < 0 || id >= model.config.vocab_size; });
  if (bad != ids.end()) {
    throw Error("token id " + std::to_string(*bad) + " is not in the vocabulary, which has ids 0 to " +
                std::to_string(model.config.vocab_size - 1));
  }
}

void Engine::State::score_window(std::span<const int> window, Score& score, const std::function<void(int)>& on_rows) {
  const ScopedSequence sequence(*cache, static_cast<int>(window.size()));
  for (std::size_t first = 0; first < window.size(); first += chunk) {
    const std::size_t rows = std::min<std::size_t>(chunk, window.size() - first);
    Batch batch = next_rows(*cache, sequence.id(), window.subspan(first, rows));
    for (std::size_t row = 0; row < rows && first + row + 1 < window.size(); ++row) {
      batch.outputs.push_back({.row = static_cast<int>(row), .target = window[first + row + 1]});
    }
    for (const Output& output : forward(model.config, *device, batch)) {
      score.logprobs.push_back(output.logprob);
      score.nll -= output.logprob;
    }
    on_rows(static_cast<int>(rows));
  }
}

Engine::Engine(const EngineOptions& options) : state_(std::make_unique<State>(options)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

RequestId Engine::submit(const Request& request, Callbacks callbacks) {
  State& state = *state_;
  const GenerationOptions& options = request.options;
  Job job;
  job.wanted.sampling = resolve_sampling(options, state.model.defaults);
  job.wanted.top_logprobs = std::min(options.logprobs, state.model.config.vocab_size);
  if (job.wanted.top_logprobs > state.device->max_top_logprobs()) {
    throw Error("this device gives at most " + std::to_string(state.device->max_top_logprobs()) +
                " log-probabilities a token");
  }
  job.text = state.prompt_text(request);
  const int prompt_tokens = static_cast<int>(job.text.size());
  if (prompt_tokens >= state.info.context) {
    throw Error("the prompt is too long: it has " + std::to_string(prompt_tokens) + " tokens, and the context of " +
                std::to_string(state.info.context) + " must also hold the answer; shorten it or raise --context");
  }
  job.max_tokens = std::min(options.max_tokens, state.info.context - prompt_tokens);
  if (request.session) job.session = static_cast<int>(*request.session);

  Result result;
  result.prompt_tokens = prompt_tokens;
  result.seed = job.wanted.sampling->seed;
  result.timing.load_s = state.load_s;
  job.listener =
      std::make_unique<Answer>(state.tokenizer ? &*state.tokenizer : nullptr, state.model.defaults.stop_tokens, options,
                               std::move(callbacks), std::move(result));
  return RequestId{state.scheduler->submit(std::move(job))};
}

void Engine::cancel(RequestId id) { state_->scheduler->cancel(static_cast<Scheduler::Ticket>(id)); }

bool Engine::step() { return state_->scheduler->step(); }

void Engine::run() {
  while (step()) {
  }
}

Result Engine::generate(const Request& request, const TextCallback& on_text, const ProgressCallback& on_progress) {
  std::optional<Result> result;
  const auto on_done = [&result](Result made) { result = std::move(made); };
  const RequestId id = submit(request, {.on_text = on_text, .on_progress = on_progress, .on_done = on_done});
  try {
    while (!result) step();
  } catch (...) {
    state_->scheduler->forget(static_cast<Scheduler::Ticket>(id));
    throw;
  }
  return *std::move(result);
}

Session Engine::open_session() { return Session{state_->scheduler->open_session()}; }

void Engine::close_session(Session session) { state_->scheduler->close_session(static_cast<int>(session)); }

int Engine::count_tokens(std::span<const Message> messages, ControlTokens control) const {
  const ChatPrompt prompt = chat_prompt(tokenizer(), messages, control);
  state_->check_ids(prompt.ids);
  return static_cast<int>(prompt.ids.size());
}

Score Engine::score(std::string_view text, ControlTokens control, const ProgressCallback& on_progress) {
  const Tokenizer& tokens = tokenizer();
  std::vector<int> ids = tokens.encode(text, control);
  if (!ids.empty() && ids.front() == tokens.bos()) ids.erase(ids.begin());

  // A <bos> before every window's share of the text makes the windows of `score(ids)` come out right.
  std::vector<int> windows;
  const std::size_t share = static_cast<std::size_t>(std::max(state_->info.context - 1, 1));
  for (std::size_t first = 0; first == 0 || first < ids.size(); first += share) {
    windows.push_back(tokens.bos());
    const std::size_t end = std::min(first + share, ids.size());
    windows.insert(windows.end(), ids.begin() + static_cast<std::ptrdiff_t>(first),
                   ids.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return score(windows, on_progress);
}

Score Engine::score(std::span<const int> tokens, const ProgressCallback& on_progress) {
  State& state = *state_;
  state.check_ids(tokens);
  state.scheduler->make_way();
  const int total = static_cast<int>(tokens.size());
  Score score;
  score.tokens = total;
  int read = 0;
  const auto on_rows = [&](int rows) {
    read += rows;
    if (on_progress && !on_progress(read, total)) throw Error("interrupted");
  };
  for (std::size_t first = 0; first < tokens.size(); first += state.info.context) {
    const std::size_t size = std::min<std::size_t>(state.info.context, tokens.size() - first);
    state.score_window(tokens.subspan(first, size), score, on_rows);
  }
  score.predictions = static_cast<int>(score.logprobs.size());
  score.perplexity = score.predictions > 0 ? std::exp(score.nll / score.predictions) : 1;
  return score;
}

const Tokenizer& Engine::tokenizer() const {
  if (!state_->tokenizer) throw Error("'" + state_->info.model + "' has no tokenizer");
  return *state_->tokenizer;
}

const EngineInfo& Engine::info() const { return state_->info; }

}  // namespace gemma
