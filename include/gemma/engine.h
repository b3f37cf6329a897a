#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "gemma/tokenizer.h"

namespace gemma {

/// How the cache keeps keys and values.
enum class CacheType {
  kAuto,  ///< float32 on the CPU, bfloat16 on a GPU
  kF32,
  kBf16,
};

/// What is fixed while an engine lives.
struct EngineOptions {
  std::filesystem::path model;  ///< a .gemma file; empty: the built-in demo model
  std::string device = "auto";  ///< "auto", "cpu", "cuda" or "cuda:N"
  int threads = 0;              ///< CPU threads; 0: one for each core that the process may use
  int context = 0;              ///< positions that a sequence may have; 0: what the model was trained for
  int chunk = 0;                ///< rows of a prompt read at once; 0: 512 on the CPU, 4096 on a GPU. Changes speed,
                                ///< never results.
  int window = 0;               ///< narrows the sliding window of the local layers; 0: the model's own
  CacheType cache = CacheType::kAuto;
};

/// How text is generated. What is not set comes from the model file, else from Gemma's defaults (in brackets).
struct GenerationOptions {
  int max_tokens = 512;               ///< at least 0
  std::optional<float> temperature;   ///< >= 0 [1.0]; 0 is greedy
  std::optional<int> top_k;           ///< >= 0 [64]; 0: off
  std::optional<float> top_p;         ///< (0, 1] [0.95]
  float min_p = 0;                    ///< [0, 1]
  float repeat_penalty = 1;           ///< > 0; over the last 64 tokens of prompt and answer
  std::optional<std::uint64_t> seed;  ///< drawn when not given; Result::seed tells it
  std::vector<std::string> stop;      ///< texts that end the answer and are left out of it; none empty
  bool ignore_eos = false;            ///< go on past the model's stop tokens
  int logprobs = 0;                   ///< log-probabilities of so many of the likeliest tokens at every step
  std::optional<bool> chat;    ///< wrap the prompt into the chat template or not; not set: as the model file says
  bool parse_special = false;  ///< control tokens written in the prompt count as such
};

/// A text to be completed.
struct Request {
  std::string prompt;
  std::vector<int> tokens;  ///< when not empty: the prompt as ids, used as they stand, `prompt` unused
  GenerationOptions options;
};

enum class FinishReason { kStop, kLength, kInterrupt };

/// One step of an answer as the model saw it, before penalty, temperature and filters.
struct StepLogprobs {
  int token = 0;
  double logprob = 0;                       ///< of `token`, natural logarithm
  std::vector<std::pair<int, double>> top;  ///< the likeliest tokens and their log-probabilities, likeliest first
};

struct Timing {
  double load_s = 0;     ///< making the engine
  double prefill_s = 0;  ///< reading the prompt, to the first token
  double decode_s = 0;   ///< all tokens after the first
  int prompt_tokens = 0;
  int decoded_tokens = 0;  ///< tokens that decode_s was spent on

  double prefill_tokens_per_s() const { return prefill_s > 0 ? prompt_tokens / prefill_s : 0; }
  double decode_tokens_per_s() const { return decode_s > 0 ? decoded_tokens / decode_s : 0; }
};

struct Result {
  std::string text;  ///< the answer, without stop texts and control tokens
  int prompt_tokens = 0;
  std::vector<int> tokens;  ///< the answer's ids, without the stop token
  FinishReason finish_reason = FinishReason::kLength;
  std::uint64_t seed = 0;
  std::vector<StepLogprobs> logprobs;  ///< one for each of `tokens`; empty unless asked for
  Timing timing;
};

/// How well a model predicts a text. A text longer than the context is cut into windows of the context.
struct Score {
  int tokens = 0;                ///< ids scored, `<bos>` included
  int predictions = 0;           ///< of them, those that have a predecessor in their window
  double nll = 0;                ///< sum of -logprobs
  double perplexity = 0;         ///< exp(nll / predictions); 1 when there are none
  std::vector<double> logprobs;  ///< of every prediction in order, natural logarithms
};

/// Receives the text of an answer as it is made, in whole UTF-8 characters; empty after a token that completes none.
/// Return false to stop.
using TextCallback = std::function<bool(std::string_view text)>;

/// Hears after each chunk of a prompt (or of a text that is scored) how many of its tokens have been read, and how many
/// there are. Return false to stop.
using ProgressCallback = std::function<bool(int read, int total)>;

/// What `inspect` and `--stats` show about the loaded model and the memory it takes.
struct EngineInfo {
  std::string model;   ///< path, or "the built-in demo model"
  std::string device;  ///< "CPU, AVX-512, 2 threads"
  int context = 0;     ///< positions that a sequence may have
  int window = 0;
  bool is_chat = false;
  std::uint64_t weights_bytes = 0;
  std::uint64_t cache_bytes = 0;   ///< of one sequence at the full context
  std::uint64_t device_bytes = 0;  ///< of GPU memory, for weights, cache and work space; 0 on the CPU
};

/// A model loaded on a device. One call at a time; an engine may be moved between threads.
class Engine {
 public:
  /// @throws Error if the model cannot be loaded, or does not fit, or the device does not exist.
  explicit Engine(const EngineOptions& options);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Completes a text.
  /// @throws Error if the prompt is not valid UTF-8, has ids outside the vocabulary, or does not fit into the context
  ///         together with at least one new token; if an option is out of range.
  /// When a callback stops it, the result has what was made until then and FinishReason::kInterrupt.
  Result generate(const Request& request, const TextCallback& on_text = {}, const ProgressCallback& on_progress = {});

  /// Log-probability of every token of a text; `<bos>` is put before the text, and before each window of a long one.
  /// A callback that stops it makes it throw Error.
  Score score(std::string_view text, ControlTokens control = ControlTokens::kAsText,
              const ProgressCallback& on_progress = {});

  /// The same for ids as they stand, cut into windows of the context with nothing added.
  /// @throws Error if an id is outside the vocabulary.
  Score score(std::span<const int> tokens, const ProgressCallback& on_progress = {});

  const Tokenizer& tokenizer() const;
  const EngineInfo& info() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma
