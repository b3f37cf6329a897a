#include "cli/result_json.h"

#include <utility>

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

}  // namespace gemma::cli
