#include "cli/result_output.h"

#include <string>

#include "cli/statistics.h"

namespace gemma::cli {

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kInterrupt:
      return "interrupt";
  }
  return "";
}

Json to_json(const std::vector<StepLogprobs>& steps, const Tokenizer& tokenizer) {
  const auto entry = [&tokenizer](int token, double logprob) {
    return Json{{"token", token}, {"piece", tokenizer.piece(token)}, {"logprob", logprob}};
  };
  Json list = Json::array();
  for (const StepLogprobs& step : steps) {
    Json top = Json::array();
    for (const auto& [token, logprob] : step.top) top.push_back(entry(token, logprob));
    list.push_back(entry(step.token, step.logprob));
    list.back()["top"] = std::move(top);
  }
  return list;
}

Json to_json(const Result& result, const Tokenizer& tokenizer) {
  return {
      {"text", result.text},
      {"prompt_tokens", result.prompt_tokens},
      {"tokens", result.tokens},
      {"finish_reason", name_of(result.finish_reason)},
      {"seed", result.seed},
      {"logprobs", to_json(result.logprobs, tokenizer)},
      {"timing",
       {{"load_s", result.timing.load_s},
        {"prefill_s", result.timing.prefill_s},
        {"decode_s", result.timing.decode_s},
        {"prefill_tokens_per_s", result.timing.prefill_tokens_per_s()},
        {"decode_tokens_per_s", result.timing.decode_tokens_per_s()}}},
  };
}

void print_speed(const Result& result) {
  const auto cached = static_cast<std::uint64_t>(result.cached_tokens);
  print_statistic("prompt", in_tokens(result.timing.prompt_tokens, result.timing.prefill_s) +
                                (cached > 0 ? "; " + count_of(cached, "token") + " more from the cache" : ""));
  print_statistic("answer", count_of(result.tokens.size(), "token") + " (" + name_of(result.finish_reason) +
                                "); after the first " +
                                in_tokens(result.timing.decoded_tokens, result.timing.decode_s));
}

void print_statistics(const Result& result, const EngineInfo& info) {
  print_speed(result);
  print_statistic("seed", std::to_string(result.seed));
  print_engine(info, result.timing.load_s);
}

}  // namespace gemma::cli
