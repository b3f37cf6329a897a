#include "gemma/engine.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <random>
#include <utility>

#include "device/device.h"
#include "model/model_file.h"
#include "runtime/kv_cache.h"
#include "runtime/stop_texts.h"
#include "runtime/transformer.h"
#include "tokenizer/chat_template.h"

namespace gemma {
namespace {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

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
  require_option(options.logprobs >= 0, "logprobs must be at least 0");
  for (const std::string& text : options.stop) require_option(!text.empty(), "a stop text must not be empty");
  return sampling;
}

/// The GPU that a device name asks for: N in "cuda:N", 0 in "cuda"; nullopt for the CPU.
std::optional<int> choose_gpu(const std::string& name) {
  if (name == "cpu") return std::nullopt;
  if (name == "auto") return has_cuda_device() ? std::optional(0) : std::nullopt;
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

/// The next rows of one sequence, without outputs yet.
Batch next_rows(KvCache& cache, KvCache::Id id, std::span<const int> tokens, RowKind kind) {
  Batch batch;
  batch.sequences.push_back(cache.extend(id, static_cast<int>(tokens.size())));
  int position = batch.sequences.front().position;
  for (int token : tokens) batch.rows.push_back({.token = token, .position = position++, .sequence = 0, .kind = kind});
  return batch;
}

/// The steps that draw an answer's tokens, one after the other. Where the device runs ahead, the step after the one
/// that is waited for has been given out, too, so that the device never waits for the host.
class AnswerSteps {
 public:
  /// @param text        prompt and answer as far as they are known; grows while this lives
  /// @param max_length  of text: no step is begun for a token beyond it
  AnswerSteps(const Config& config, Device& device, KvCache& cache, KvCache::Id id, const std::vector<int>& text,
              std::size_t max_length, const OutputRow& wanted)
      : config_(config),
        device_(device),
        cache_(cache),
        id_(id),
        text_(text),
        max_length_(max_length),
        wanted_(wanted) {}

  ~AnswerSteps() {
    try {
      device_.finish(0);  // nothing may write to answers_ any more
    } catch (const Error&) {
      // Whatever is wrong with the device shows again when it is used next.
    }
  }
  AnswerSteps(const AnswerSteps&) = delete;
  AnswerSteps& operator=(const AnswerSteps&) = delete;

  /// The next token of the answer. Its caller puts it at the end of the text before the next call.
  const Output& next() {
    if (begun_ == finished_) begin();
    // The step after the prompt's is not of the same rows, so it needs a token that is known.
    const bool may_run_ahead = device_.runs_ahead() && begun_ >= 2 && begun_ - finished_ == 1;
    if (may_run_ahead && cache_.length(id_) + std::size_t{1} < max_length_) begin();
    device_.finish(begun_ - finished_ - 1);
    return answers_[static_cast<std::size_t>(finished_++ % 2)].front();
  }

 private:
  void begin() {
    const auto known = std::span(text_).subspan(std::min<std::size_t>(text_.size(), cache_.length(id_)));
    const int drawn[] = {kSampledToken};
    Batch batch =
        next_rows(cache_, id_, known.empty() ? drawn : known, begun_ == 0 ? RowKind::kPrompt : RowKind::kGenerated);
    batch.outputs.push_back(wanted_);
    batch.outputs.front().row = static_cast<int>(batch.rows.size()) - 1;
    batch.outputs.front().recent = std::span(text_).last(std::min<std::size_t>(text_.size(), kRepeatWindow));
    std::vector<Output>& answers = answers_[static_cast<std::size_t>(begun_++ % 2)];
    answers.assign(1, {});
    begin_forward(config_, device_, batch, answers);
  }

  const Config& config_;
  Device& device_;
  KvCache& cache_;
  KvCache::Id id_;
  const std::vector<int>& text_;
  std::size_t max_length_;
  OutputRow wanted_;
  int begun_ = 0;
  int finished_ = 0;
  std::array<std::vector<Output>, 2> answers_;
};

}  // namespace

struct Engine::State {
  Model model;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<Device> device;
  std::optional<KvCache> cache;
  int chunk = 0;
  EngineInfo info;
  double load_s = 0;

  explicit State(const EngineOptions& options);

  std::vector<int> prompt_ids(const Request& request) const;
  void check_ids(std::span<const int> ids) const;
  bool is_stop_token(int token) const;
  void score_window(std::span<const int> window, Score& score, const std::function<void(int)>& on_rows);
};

Engine::State::State(const EngineOptions& options) {
  const Stopwatch watch;
  if (options.chunk < 0) throw Error("the chunk must be at least 1 row");
  if (options.context < 0 || options.context > 1 << 24)
    throw Error("the context must be between 1 and 16777216 positions");
  if (options.window < 0) throw Error("the window must be at least 1");
  if (options.threads < 0) throw Error("the number of threads must be at least 1");

  model = options.model.empty() ? load_demo_model() : load_model(options.model);
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
  info.is_chat = model.defaults.is_chat;
  info.weights_bytes = model.weights.bytes();

  const std::optional<int> gpu = choose_gpu(options.device);
  chunk = std::min(options.chunk != 0 ? options.chunk : gpu ? 4096 : 512, info.context);
  const bool is_bf16 = options.cache == CacheType::kBf16 || (options.cache == CacheType::kAuto && gpu);
  const KvLayout kv = plan_kv_cache(info.window, info.context, /*sequences=*/1, is_bf16 ? KvType::kBf16 : KvType::kF32);
  info.cache_bytes = kv_bytes(config, info.window, info.context, kv.type).total();
  if (gpu) {
    device = make_cuda_device(model, {.ordinal = *gpu, .max_rows = chunk, .kv = kv});
  } else {
    device = make_cpu_device(model, {.threads = options.threads, .max_rows = chunk, .kv = kv});
  }
  info.device_bytes = device->memory_bytes();
  info.device = device->description();
  cache.emplace(*device);
  load_s = watch.seconds();
}

std::vector<int> Engine::State::prompt_ids(const Request& request) const {
  std::vector<int> ids = request.tokens;
  if (ids.empty()) {
    const ControlTokens control = request.options.parse_special ? ControlTokens::kParse : ControlTokens::kAsText;
    if (request.options.chat.value_or(model.defaults.is_chat)) {
      const ChatMessage message{.role = "user", .content = request.prompt};
      ids = chat_prompt(*tokenizer, {&message, 1}, control);
    } else {
      ids = tokenizer->encode(request.prompt, control);
      if (ids.empty() || ids.front() != tokenizer->bos()) ids.insert(ids.begin(), tokenizer->bos());
    }
  }
  check_ids(ids);
  if (static_cast<int>(ids.size()) >= info.context) {
    throw Error("the prompt is too long: it has " + std::to_string(ids.size()) + " tokens, and the context of " +
                std::to_string(info.context) + " must also hold the answer; shorten it or raise --context");
  }
  return ids;
}

void Engine::State::check_ids(std::span<const int> ids) const {
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](int id) { return id < 0 || id >= model.config.vocab_size; });
  if (bad != ids.end()) {
    throw Error("token id " + std::to_string(*bad) + " is not in the vocabulary, which has ids 0 to " +
                std::to_string(model.config.vocab_size - 1));
  }
}

bool Engine::State::is_stop_token(int token) const {
  const std::vector<int>& stops = model.defaults.stop_tokens;
  return std::find(stops.begin(), stops.end(), token) != stops.end();
}

void Engine::State::score_window(std::span<const int> window, Score& score, const std::function<void(int)>& on_rows) {
  const ScopedSequence sequence(*cache, static_cast<int>(window.size()));
  for (std::size_t first = 0; first < window.size(); first += chunk) {
    const std::size_t rows = std::min<std::size_t>(chunk, window.size() - first);
    Batch batch = next_rows(*cache, sequence.id(), window.subspan(first, rows), RowKind::kPrompt);
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

Result Engine::generate(const Request& request, const TextCallback& on_text, const ProgressCallback& on_progress) {
  State& state = *state_;
  const GenerationOptions& options = request.options;
  OutputRow wanted;
  wanted.sampling = resolve_sampling(options, state.model.defaults);
  wanted.top_logprobs = std::min(options.logprobs, state.model.config.vocab_size);

  std::vector<int> text = state.prompt_ids(request);
  const std::size_t prompt_size = text.size();
  const int prompt_tokens = static_cast<int>(prompt_size);
  const int max_tokens = std::min(options.max_tokens, state.info.context - prompt_tokens);

  Result result;
  result.prompt_tokens = prompt_tokens;
  result.seed = wanted.sampling->seed;
  result.timing.load_s = state.load_s;
  result.timing.prompt_tokens = prompt_tokens;
  if (max_tokens == 0) return result;

  const ScopedSequence sequence(*state.cache, prompt_tokens + max_tokens);
  const Stopwatch prefill;
  const auto interrupted = [&] {
    result.finish_reason = FinishReason::kInterrupt;
    return std::move(result);
  };
  // All of the prompt but its last chunk, which is read by the loop below.
  for (std::size_t read = 0; prompt_size - read > static_cast<std::size_t>(state.chunk);) {
    const auto chunk = std::span(text).subspan(read, state.chunk);
    forward(state.model.config, *state.device, next_rows(*state.cache, sequence.id(), chunk, RowKind::kPrompt));
    read += chunk.size();
    if (on_progress && !on_progress(static_cast<int>(read), prompt_tokens)) return interrupted();
  }

  std::optional<StreamingDetokenizer> detokenizer;
  if (state.tokenizer) detokenizer.emplace(*state.tokenizer);
  StopTexts stop_texts(options.stop);
  const auto emit = [&](const std::string& piece) {
    result.text += piece;
    return !on_text || on_text(piece);
  };

  AnswerSteps steps(state.model.config, *state.device, *state.cache, sequence.id(), text,
                    prompt_size + static_cast<std::size_t>(max_tokens), wanted);
  std::optional<Stopwatch> decode;
  while (true) {
    const Output& step = steps.next();
    if (!decode) {
      result.timing.prefill_s = prefill.seconds();
      decode.emplace();
      if (on_progress && !on_progress(prompt_tokens, prompt_tokens)) return interrupted();
    } else {
      result.timing.decode_s = decode->seconds();
      ++result.timing.decoded_tokens;
    }
    if (!options.ignore_eos && state.is_stop_token(step.token)) {
      result.finish_reason = FinishReason::kStop;
      break;
    }

    text.push_back(step.token);
    result.tokens.push_back(step.token);
    if (options.logprobs > 0) {
      StepLogprobs logprobs{.token = step.token, .logprob = step.logprob, .top = {}};
      for (const TokenLogprob& top : step.top) logprobs.top.emplace_back(top.token, top.logprob);
      result.logprobs.push_back(std::move(logprobs));
    }
    // An embedding may have more rows than the tokenizer has pieces; what they stand for has no text.
    const bool has_text = detokenizer && step.token < state.tokenizer->size();
    const bool goes_on = emit(has_text ? stop_texts.push(detokenizer->push(step.token)) : std::string());
    if (stop_texts.found()) {
      result.finish_reason = FinishReason::kStop;
      return result;
    }
    if (!goes_on) {
      result.finish_reason = FinishReason::kInterrupt;
      break;
    }
    if (static_cast<int>(result.tokens.size()) == max_tokens) break;
  }
  if (detokenizer) emit(stop_texts.push(detokenizer->finish()) + stop_texts.finish());
  if (stop_texts.found()) result.finish_reason = FinishReason::kStop;
  return result;
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
