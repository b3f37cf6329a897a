#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "gemma/engine.h"
#include "runtime/scheduler.h"
#include "runtime/stop_texts.h"

namespace gemma {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// An answer as it is made: turns tokens into text, finds its end, and tells the caller.
class Answer final : public JobListener {
 public:
  /// @param tokenizer    nullptr: the model has none, and the answer no text
  /// @param stop_tokens  end the answer; must outlive this, as the tokenizer must
  /// @param result       what is known already: size of the prompt, seed, load time
  Answer(const Tokenizer* tokenizer, const std::vector<int>& stop_tokens, const GenerationOptions& options,
         Callbacks callbacks, Result result);

  void on_start(int cached) override;
  bool on_read(int read, int total) override;
  Next on_token(const Output& output) override;
  void on_end(bool is_complete) override;

 private:
  bool emit(const std::string& text);

  const Tokenizer* tokenizer_;
  const std::vector<int>& stop_tokens_;
  bool ignores_eos_;
  bool wants_logprobs_;
  Callbacks callbacks_;
  Result result_;
  std::optional<StreamingDetokenizer> detokenizer_;
  StopTexts stop_texts_;
  std::optional<Stopwatch> prefill_, decode_;
};

}  // namespace gemma
