#include "runtime/answer.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace gemma {

Answer::Answer(const Tokenizer* tokenizer, const std::vector<int>& stop_tokens, const GenerationOptions& options,
               Callbacks callbacks, Result result)
    : tokenizer_(tokenizer),
      stop_tokens_(stop_tokens),
      ignores_eos_(options.ignore_eos),
      wants_logprobs_(options.logprobs > 0),
      callbacks_(std::move(callbacks)),
      result_(std::move(result)),
      stop_texts_(options.stop) {
  if (tokenizer != nullptr) detokenizer_.emplace(*tokenizer);
}

void Answer::on_start(int cached) {
  prefill_.emplace();
  result_.cached_tokens = cached;
  result_.timing.prompt_tokens = result_.prompt_tokens - cached;
}

bool Answer::on_read(int read, int total) {
  if (read == total) {
    result_.timing.prefill_s = prefill_->seconds();
    decode_.emplace();
  }
  return !callbacks_.on_progress || callbacks_.on_progress(read, total);
}

bool Answer::emit(const std::string& text) {
  result_.text += text;
  return !callbacks_.on_text || callbacks_.on_text(text);
}

JobListener::Next Answer::on_token(const Output& output) {
  if (!result_.tokens.empty()) {
    result_.timing.decode_s = decode_->seconds();
    ++result_.timing.decoded_tokens;
  }
  // No finite logits make a drawn token's probability 0.
  if (!std::isfinite(output.logprob)) result_.is_damaged = true;
  const bool is_stop = std::find(stop_tokens_.begin(), stop_tokens_.end(), output.token) != stop_tokens_.end();
  if (is_stop && !ignores_eos_) {
    result_.finish_reason = FinishReason::kStop;
    return Next::kEndHere;
  }

  result_.tokens.push_back(output.token);
  if (wants_logprobs_) {
    StepLogprobs logprobs{.token = output.token, .logprob = output.logprob, .top = {}};
    for (const TokenLogprob& top : output.top) logprobs.top.emplace_back(top.token, top.logprob);
    result_.logprobs.push_back(std::move(logprobs));
  }
  // An embedding may have more rows than the tokenizer has pieces; what they stand for has no text.
  const bool has_text = detokenizer_ && output.token < tokenizer_->size();
  const bool goes_on = emit(has_text ? stop_texts_.push(detokenizer_->push(output.token)) : std::string());
  if (stop_texts_.found()) return Next::kEnd;
  if (!goes_on) {
    result_.finish_reason = FinishReason::kInterrupt;
    return Next::kEnd;
  }
  return Next::kGoOn;
}

void Answer::on_end(bool is_complete) {
  if (!is_complete) result_.finish_reason = FinishReason::kInterrupt;
  if (detokenizer_ && !stop_texts_.found()) {
    const std::string rest = stop_texts_.push(detokenizer_->finish()) + stop_texts_.finish();
    if (!rest.empty()) emit(rest);
  }
  if (stop_texts_.found()) result_.finish_reason = FinishReason::kStop;
  if (callbacks_.on_done) callbacks_.on_done(std::move(result_));
}

}  // namespace gemma
