#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "cli/common_options.h"
#include "cli/json_output.h"
#include "cli/numbers.h"
#include "cli/pieces.h"
#include "cli/terminal.h"
#include "cli/text_input.h"
#include "gemma/error.h"
#include "gemma/tokenizer.h"
#include "model/model_file.h"

namespace gemma::cli {
namespace {

struct TokenizeOptions {
  CommonOptions common;
  std::string text;
  std::string file;
  bool decode = false;
  bool parse_special = false;
  CLI::Option* text_option = nullptr;
  CLI::Option* file_option = nullptr;
};

bool is_argument(const TokenizeOptions& options) { return *options.text_option && options.text != "-"; }

std::string read_text(const TokenizeOptions& options) {
  if (*options.file_option) return read_file(options.file, kMostTextBytes);
  if (is_argument(options)) return options.text;
  return read_standard_input(options.decode ? "the ids" : "the text", options.common.quiet, kMostTextBytes);
}

Tokenizer load_tokenizer(const std::filesystem::path& path) {
  const Model model = path.empty() ? load_demo_model() : load_model(path);
  if (model.tokenizer.empty()) throw Error("'" + model.name + "' has no tokenizer");
  return Tokenizer(model.tokenizer);
}

void print_tokens(const std::vector<int>& ids, const Tokenizer& tokenizer) {
  const std::size_t width = std::to_string(tokenizer.size() - 1).size();
  std::string out;
  for (const int id : ids) {
    const std::string digits = std::to_string(id);
    out += std::string(width - digits.size(), ' ') + digits + "  " + visible(tokenizer.piece(id)) + "\n";
  }
  print(out);
}

int run(TokenizeOptions& options) {
  require_at_most_one({options.text_option, options.file_option}, "give the text once: as TEXT or with --file");
  const std::string text = read_text(options);
  std::vector<int> ids;
  if (options.decode) ids = is_argument(options) ? parse_argument_ids(text, "--decode") : parse_ids(text, "the ids");
  choose_model(options.common);
  const Tokenizer tokenizer = load_tokenizer(options.common.engine.model);
  if (options.decode) {
    const std::string decoded = tokenizer.decode(ids);
    options.common.json ? print_json({{"text", decoded}}) : print(decoded + "\n");
    return kExitDone;
  }
  ids = tokenizer.encode(text, options.parse_special ? ControlTokens::kParse : ControlTokens::kAsText);
  if (options.common.json) {
    Json pieces = Json::array();
    for (const int id : ids) pieces.push_back(tokenizer.piece(id));
    print_json({{"tokens", ids}, {"pieces", pieces}});
  } else {
    print_tokens(ids, tokenizer);
  }
  return kExitDone;
}

}  // namespace

Command add_tokenize_command(CLI::App& program) {
  CLI::App* app = program.add_subcommand("tokenize", "Token ids and pieces of a text, or the text of ids");
  const auto options = std::make_shared<TokenizeOptions>();
  options->text_option =
      app->add_option("TEXT", options->text, "The text, or ids; - or none: standard input")->option_text(" ");
  options->file_option =
      app->add_option("--file", options->file, "Read the text, or ids, from a file")->type_name("FILE");
  app->add_flag("--decode", options->decode, "From ids (\"506 483\") to text [off]");
  app->add_flag("--parse-special", options->parse_special, "Control tokens in the text count [off]");
  add_model_option(*app, options->common);
  add_output_options(*app, options->common);
  return {app, [options] { return run(*options); }};
}

}  // namespace gemma::cli
