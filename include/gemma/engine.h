#pragma once

#include <cstddef>
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
#include "gemma/message.h"
#include "gemma/tokenizer.h"

namespace gemma {

/// How the cache keeps keys and values.
enum class CacheType {
  kAuto,  ///< float32 on the CPU, bfloat16 on a GPU
  kF32,
  kBf16,
  kQ8,  ///< 8 bits with a scale for each head and position
};

/// The most log-probabilities that a step can be asked for, on every device.
inline constexpr int kMaxLogprobs = 1000;

/// What is fixed while an engine lives.
struct EngineOptions {
  static constexpr int kMostSequences = 4096;
  static constexpr int kUsualPrefixes = 4;

  std::filesystem::path model;  ///< a .gemma file; empty: the built-in demo model
  std::string device = "auto";  ///< "auto", "cpu", "cuda" or "cuda:N"
  int threads = 0;              ///< CPU threads; 0: one for each core that the process may use
  int context = 0;              ///< positions that a sequence may have; 0: what the model was trained for
  int chunk = 0;                ///< rows of a prompt read at once; 0: 512 on the CPU, 4096 on a GPU, where less
                                ///< memory makes it fewer. Changes speed, never results.
  int window = 0;               ///< narrows the sliding window of the local layers; 0: the model's own
  CacheType cache = CacheType::kAuto;
  int sequences = 1;  ///< requests that are worked on at once, up to kMostSequences; 0: as many as fit, up to 64 (8 on
                      ///< the CPU)
  /// Beginnings that requests share, kept beside those that are worked on. Each may take the memory of a sequence's
  /// sliding window; there are fewer where it does not fit. Not set: kUsualPrefixes, or none for one request at once.
  std::optional<int> prefixes = {};
  std::size_t checkpoint_bytes = std::size_t{1} << 30;  ///< host memory for going back in conversations
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
  int logprobs = 0;                   ///< log-probabilities of so many of the likeliest tokens at every step; at most
                                      ///< kMaxLogprobs
  std::optional<bool> chat;    ///< wrap the prompt into the chat template or not; not set: as the model file says
  bool parse_special = false;  ///< control tokens written in the prompt count as such
};

/// A conversation whose keys and values stay in the cache from one request to the next.
enum class Session : int {};

/// What is to be completed: the first of `tokens`, `messages` and `prompt` that is not empty.
struct Request {
  std::string prompt;
  std::vector<Message> messages = {};  ///< a conversation that ends with a message of the user
  std::vector<int> tokens = {};        ///< ids, used as they stand
  GenerationOptions options = {};
  /// The cache to go on from: as much of the prompt as the session has read, or made, before is not read again.
  std::optional<Session> session = {};
};

enum class FinishReason { kStop, kLength, kInterrupt };

/// One step of an answer as the model saw it, before penalty, temperature and filters.
struct StepLogprobs {
  int token = 0;
  double logprob = 0;                       ///< of `token`, natural logarithm
  std::vector<std::pair<int, double>> top;  ///< the likeliest tokens and their log-probabilities, likeliest first
};

struct Timing {
  double load_s = 0;       ///< making the engine
  double prefill_s = 0;    ///< reading the prompt, to the first token
  double decode_s = 0;     ///< all tokens after the first
  int prompt_tokens = 0;   ///< that were read: those that the cache had are not among them
  int decoded_tokens = 0;  ///< tokens that decode_s was spent on

  double prefill_tokens_per_s() const { return prefill_s > 0 ? prompt_tokens / prefill_s : 0; }
  double decode_tokens_per_s() const { return decode_s > 0 ? decoded_tokens / decode_s : 0; }
};

struct Result {
  std::string text;  ///< the answer, without stop texts and control tokens
  int prompt_tokens = 0;
  int cached_tokens = 0;    ///< of them, those that the cache had already
  std::vector<int> tokens;  ///< the answer's ids, without the stop token
  FinishReason finish_reason = FinishReason::kLength;
  std::uint64_t seed = 0;
  std::vector<StepLogprobs> logprobs;  ///< one for each of `tokens`; empty unless asked for
  bool is_damaged = false;             ///< what the model computed was no number: its weights must be damaged
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

/// Names a request that was submitted.
enum class RequestId : std::uint64_t {};

/// Receives the text of an answer as it is made, in whole UTF-8 characters; empty after a token that completes none.
/// Return false to stop.
using TextCallback = std::function<bool(std::string_view text)>;

/// Hears after each chunk of a prompt (or of a text that is scored) how many of its tokens have been read, and how many
/// there are. Return false to stop.
using ProgressCallback = std::function<bool(int read, int total)>;

/// What a caller wants to hear of a request. All are called from within Engine::step; they may submit and cancel
/// requests. What one of them throws leaves step() and ends its request, which is heard of no more; the other requests
/// go on with the next step.
struct Callbacks {
  TextCallback on_text = {};
  ProgressCallback on_progress = {};
  std::function<void(Result result)> on_done = {};
};

/// What `inspect` and `--stats` show about the loaded model and the memory it takes.
struct EngineInfo {
  std::string model;         ///< path, or "the built-in demo model"
  std::string device;        ///< "CPU, AVX-512, 2 threads"
  std::string why_not_cuda;  ///< why "auto" took the CPU though there is a GPU; else empty
  int context = 0;           ///< positions that a sequence may have
  int window = 0;
  int sequences = 1;           ///< requests that are worked on at once
  std::string device_kind;     ///< "cpu" or "cuda"
  std::uint64_t model_id = 0;  ///< differs between models that differ
  bool is_chat = false;
  std::uint64_t weights_bytes = 0;
  std::uint64_t cache_bytes = 0;   ///< of one sequence at the full context
  std::uint64_t device_bytes = 0;  ///< of GPU memory, for weights, cache and work space; 0 on the CPU
};

/// A model loaded on a device, and the requests that it works on. One call at a time; an engine may be moved between
/// threads.
///
/// Many requests share the work (continuous batching): each step takes one token further every answer that is being
/// made, and reads a part of the prompts of those that came next. A request is admitted, in the order of submission,
/// when the cache can hold it to its longest possible answer. What requests submitted together have in common at their
/// beginning is read once, see EngineOptions::prefixes. The result of a request depends on nothing but the request: not
/// on others, not on the chunk.
class Engine {
 public:
  /// @throws Error if the model cannot be loaded, or does not fit, or the device does not exist.
  explicit Engine(const EngineOptions& options);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Completes a text: submits it, and runs until it is done.
  /// @throws Error as submit() does.
  /// When a callback stops it, the result has what was made until then and FinishReason::kInterrupt.
  Result generate(const Request& request, const TextCallback& on_text = {}, const ProgressCallback& on_progress = {});

  /// Takes a request, and does nothing for it yet.
  /// @throws Error if the prompt is not valid UTF-8, has ids outside the vocabulary, or does not fit into the context
  ///         together with at least one new token; if an option is out of range; if the session is busy.
  RequestId submit(const Request& request, Callbacks callbacks);

  /// Ends a request with what it has made so far and FinishReason::kInterrupt, at the beginning of the next step.
  /// Nothing happens if it is done already.
  void cancel(RequestId id);

  /// One step of the model for all requests that there is room for. @return whether there is more to do.
  /// @throws Error if the device fails.
  bool step();

  /// Steps until all requests are done.
  void run();

  /// Opens an empty session. It takes the place of one of the requests that are worked on at once, until it is closed.
  /// @throws Error if there is no room for it.
  Session open_session();
  void close_session(Session session);  ///< @throws Error if a request is using it.

  /// Log-probability of every token of a text; `<bos>` is put before the text, and before each window of a long one.
  /// A callback that stops it makes it throw Error.
  Score score(std::string_view text, ControlTokens control = ControlTokens::kAsText,
              const ProgressCallback& on_progress = {});

  /// The same for ids as they stand, cut into windows of the context with nothing added.
  /// @throws Error if an id is outside the vocabulary.
  Score score(std::span<const int> tokens, const ProgressCallback& on_progress = {});

  /// Ids of a conversation as a prompt. @throws Error as submit() does; not for being too long.
  int count_tokens(std::span<const Message> messages, ControlTokens control = ControlTokens::kAsText) const;

  const Tokenizer& tokenizer() const;
  const EngineInfo& info() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma
