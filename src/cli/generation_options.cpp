#include "cli/generation_options.h"

#include <CLI/CLI.hpp>

#include "cli/numbers.h"

namespace gemma::cli {
namespace {

constexpr const char* kGroup = "Generation";

std::string check_not_empty(const std::string& text) { return text.empty() ? "the text is empty" : std::string(); }

}  // namespace

void add_generation_options(CLI::App& app, GenerationOptions& options) {
  app.add_option("-n,--max-tokens", options.max_tokens, "Longest answer [512]")
      ->type_name("N")
      ->check(whole_number(0))
      ->group(kGroup);
  app.add_option("--temperature", options.temperature, "0 is greedy [the model's, or 1.0]")
      ->type_name("X")
      ->check(number("of at least 0", [](float x) { return x >= 0; }))
      ->group(kGroup);
  app.add_option("--top-k", options.top_k, "Draw from the K likeliest; 0: all [the model's, or 64]")
      ->type_name("K")
      ->check(whole_number(0))
      ->group(kGroup);
  app.add_option("--top-p", options.top_p, "Draw from the likeliest share [the model's, or 0.95]")
      ->type_name("P")
      ->check(number("above 0 and at most 1", [](float p) { return p > 0 && p <= 1; }))
      ->group(kGroup);
  app.add_option("--min-p", options.min_p, "Least share of the best one's probability [0]")
      ->type_name("P")
      ->check(number("from 0 to 1", [](float p) { return p >= 0 && p <= 1; }))
      ->group(kGroup);
  app.add_option("--repeat-penalty", options.repeat_penalty, "Over the last 64 tokens; 1: none [1]")
      ->type_name("X")
      ->check(number("above 0", [](float x) { return x > 0; }))
      ->group(kGroup);
  app.add_option("--seed", options.seed, "Same seed, same answer [drawn, and reported]")
      ->type_name("N")
      ->check(whole_number<std::uint64_t>(0))
      ->group(kGroup);
  // Without allow_extra_args(false), CLI11 would take "[a,b]" for a list of texts and swallow the prompt behind it.
  app.add_option("--stop", options.stop, "Text that ends the answer; may be repeated [none]")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->option_text("TEXT")
      ->check(check_not_empty)
      ->group(kGroup);
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on after the model's end [off]")->group(kGroup);
  app.add_option("--logprobs", options.logprobs, "K log-probabilities a token, with --json [0]")
      ->type_name("K")
      ->check(whole_number(0, kMaxLogprobs))
      ->group(kGroup);
  app.add_flag("--parse-special", options.parse_special, "Control tokens in the prompt count [off]")->group(kGroup);
}

void add_template_options(CLI::App& app, GenerationOptions& options) {
  CLI::Option* chat = app.add_flag_callback(
      "--chat", [&options] { options.chat = true; }, "The prompt is a chat turn [as the model says]");
  CLI::Option* raw = app.add_flag_callback(
      "--raw", [&options] { options.chat = false; }, "The prompt is plain text [as the model says]");
  // The text keeps "Excludes: ..." out of the help.
  chat->group(kGroup)->option_text(" ")->excludes(raw);
  raw->group(kGroup)->option_text(" ");
}

}  // namespace gemma::cli
