#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/json_output.h"
#include "cli/numbers.h"
#include "cli/pieces.h"
#include "cli/statistics.h"
#include "cli/terminal.h"
#include "cli/text_input.h"
#include "gemma/engine.h"

namespace gemma::cli {
namespace {

struct ScoreOptions {
  CommonOptions common;
  std::string file;
  std::string tokens;
  std::string tokens_file;
  bool parse_special = false;
  CLI::Option* file_option = nullptr;
  CLI::Option* tokens_option = nullptr;
  CLI::Option* tokens_file_option = nullptr;
};

struct Scored {
  Score score;
  std::vector<int> predicted;  // the token that each log-probability is of
};

Scored score_text(Engine& engine, const std::string& text, ControlTokens control, const ProgressCallback& on_progress) {
  Scored scored;
  scored.score = engine.score(text, control, on_progress);
  scored.predicted = engine.tokenizer().encode(text, control);
  // A <bos> that begins the text is taken for the one that is put before it.
  if (scored.predicted.size() == scored.score.logprobs.size() + 1) scored.predicted.erase(scored.predicted.begin());
  return scored;
}

Scored score_ids(Engine& engine, const std::vector<int>& ids, const ProgressCallback& on_progress) {
  Scored scored;
  scored.score = engine.score(ids, on_progress);
  const auto window = static_cast<std::size_t>(engine.info().context);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i % window != 0) scored.predicted.push_back(ids[i]);
  }
  return scored;
}

void print_text(const Scored& scored, const Tokenizer& tokenizer) {
  std::string out;
  for (std::size_t i = 0; i < scored.score.logprobs.size(); ++i) {
    char logprob[32];
    std::snprintf(logprob, sizeof logprob, "%9.4f", scored.score.logprobs[i]);
    out += std::string(logprob) + "  " + visible(tokenizer.piece(scored.predicted.at(i))) + "\n";
  }
  char summary[160];
  std::snprintf(summary, sizeof summary, "tokens      %d\nnll         %.6f\nperplexity  %.6f\n", scored.score.tokens,
                scored.score.nll, scored.score.perplexity);
  print(out + summary);
}

int run(ScoreOptions& options) {
  require_at_most_one({options.file_option, options.tokens_option, options.tokens_file_option},
                      "give the text once: as FILE, with --tokens or with --tokens-file");
  std::vector<int> ids;
  std::string text;
  if (*options.tokens_option) {
    ids = parse_argument_ids(options.tokens, "--tokens");
  } else if (*options.tokens_file_option) {
    ids = parse_ids(read_file(options.tokens_file, kMostTextBytes), "'" + options.tokens_file + "'");
  } else {
    text = *options.file_option ? read_file(options.file, kMostTextBytes)
                                : read_standard_input("the text", options.common.quiet, kMostTextBytes);
  }

  choose_model(options.common);
  const auto start = std::chrono::steady_clock::now();
  const auto seconds_since = [](auto time) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - time).count();
  };
  Engine engine(options.common.engine);
  note_device(engine.info(), options.common);
  const double load_s = seconds_since(start);
  const auto loaded = std::chrono::steady_clock::now();
  ProgressBar progress("Scoring", !options.common.quiet);
  const auto on_progress = [&progress](int read, int total) {
    progress.update(read, total);
    return true;
  };
  const ControlTokens control = options.parse_special ? ControlTokens::kParse : ControlTokens::kAsText;
  const Scored scored =
      ids.empty() ? score_text(engine, text, control, on_progress) : score_ids(engine, ids, on_progress);
  progress.clear();
  if (!std::isfinite(scored.score.nll)) warn_of_damage(engine.info());

  if (options.common.json) {
    print_json({{"tokens", scored.score.tokens},
                {"nll", scored.score.nll},
                {"perplexity", scored.score.perplexity},
                {"logprobs", scored.score.logprobs}});
  } else {
    print_text(scored, engine.tokenizer());
  }
  if (options.common.stats) {
    print_statistic("score", in_tokens(scored.score.tokens, seconds_since(loaded)));
    print_engine(engine.info(), load_s);
  }
  return kExitDone;
}

}  // namespace

Command add_score_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("score", "Log-probability of every token, and the perplexity");
  const auto options = std::make_shared<ScoreOptions>();
  options->file_option =
      app->add_option("FILE", options->file, "The text; - or none: standard input")->option_text(" ");
  options->tokens_option =
      app->add_option("--tokens", options->tokens, "Token ids instead: \"2 506 483\"")->type_name("IDS");
  options->tokens_file_option =
      app->add_option("--tokens-file", options->tokens_file, "A file of token ids instead")->type_name("FILE");
  app->add_flag("--parse-special", options->parse_special, "Control tokens in the text count [off]");
  add_engine_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
