#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gemma/error.h"
#include "gemma/tokenizer.h"
#include "model/convert.h"
#include "model/input_file.h"
#include "model/model_file.h"
#include "progress_bar.h"
#include "runtime/calibrate.h"
#include "usage.h"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;
constexpr int kInterrupted = 130;
constexpr std::uint64_t kMaxTextBytes = std::uint64_t{64} << 20;

volatile std::sig_atomic_t is_interrupted = 0;

void interrupt(int) { is_interrupted = 1; }

// The conversion stops at its next block and takes its temporary file with it.
void catch_signals() {
  struct sigaction action {};
  action.sa_handler = interrupt;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  // These would end the program on the spot; ignored, they become errors of the write that caused them.
  action.sa_handler = SIG_IGN;
  for (const int signal : {SIGPIPE, SIGXFSZ}) sigaction(signal, &action, nullptr);
}

std::string text_of(gemma::WeightTypes types) {
  std::string text(gemma::name_of(types.layers));
  if (types.embed != types.layers) text.append(" with the embedding in ").append(gemma::name_of(types.embed));
  return text;
}

void report(const gemma::Conversion& made, const gemma::ConvertOptions& options) {
  const gemma::Config& config = made.config;
  std::fprintf(
      stderr, "%s: %.1f million parameters in %d layers (%d local with a window of %d, %d global), %s, %.1f MB, %s\n",
      options.output.c_str(), static_cast<double>(config.embedding_parameters() + config.other_parameters()) * 1e-6,
      config.layer_count(), config.local_layer_count(), config.window, config.global_layer_count(),
      text_of(options.types).c_str(), static_cast<double>(made.bytes) * 1e-6,
      made.defaults.is_chat ? "for chat" : "for completion");
}

// Reads the text with the model that is to be quantised.
std::map<std::string, std::vector<float>> calibrate(const std::filesystem::path& source,
                                                    const std::filesystem::path& text_file, bool is_quiet) {
  if (!std::filesystem::is_regular_file(source)) {
    throw gemma::Error(
        "--calibrate runs the model, so it needs a .gemma file as its source. Make one first with: "
        "gemma-convert " +
        source.string() + " -o FILE");
  }
  const gemma::Model model = gemma::load_model(source);
  const gemma::Tokenizer tokenizer(model.tokenizer);
  const std::string text = gemma::read_small_file(text_file, kMaxTextBytes);
  const std::vector<int> tokens = tokenizer.encode(text, gemma::ControlTokens::kParse);
  if (!is_quiet) std::fprintf(stderr, "Calibrating on %zu tokens of %s\n", tokens.size(), text_file.c_str());
  gemma::ProgressBar bar(!is_quiet && isatty(STDERR_FILENO) == 1, gemma::ProgressBar::kTokens);
  return gemma::calibrate(model, tokens, tokenizer.bos(), 0, [&bar](std::uint64_t done, std::uint64_t total) {
    bar.update(done, total);
    return is_interrupted == 0;
  });
}

int run(int argc, char** argv) {
  CLI::App app("Makes a .gemma file from the Hugging Face directory of a Gemma 2 model, or from a .gemma file in bf16.",
               "gemma-convert");
  app.set_version_flag("--version", "gemma-convert " GEMMA_VERSION);
  gemma::ConvertOptions options;
  std::string type = "bf16";
  std::string embed_type;
  std::filesystem::path text_file;
  bool is_chat = false;
  bool is_raw = false;
  bool is_quiet = false;
  app.add_option("SOURCE", options.source,
                 "directory with config.json, tokenizer.model and model.safetensors or its shards and index; "
                 "or a .gemma file in bf16")
      ->required();
  app.add_option("-o,--output", options.output, "the file to make; replaced if it exists")->required();
  app.add_option("--type", type, "how weights are stored: bf16, q8 (8.5 bits a weight) or q4 (4.625 bits)")
      ->check(CLI::IsMember({"bf16", "q8", "q4"}))
      ->capture_default_str();
  app.add_option("--embed-type", embed_type,
                 "how the embedding is stored, which is also the head (default: q8 with --type q8 and q4, else bf16)")
      ->check(CLI::IsMember({"bf16", "q8", "q4"}));
  app.add_option("--calibrate", text_file,
                 "a text of the kind that the model will read or write, in UTF-8: inputs that are large on it are "
                 "quantised with more care (SOURCE must be a .gemma file; default: all inputs count the same)");
  CLI::Option* chat = app.add_flag("--chat", is_chat,
                                   "the model is instruction-tuned (default: whether the source has a chat template)");
  app.add_flag("--raw", is_raw, "the model completes text (default: whether the source has no chat template)")
      ->excludes(chat);
  app.add_flag("--quiet", is_quiet, "no progress bar and no summary (default: both on stderr)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return gemma::end_parsing(app, error);
  }

  options.types.layers = gemma::parse_weight_type(type);
  const bool is_quantised = options.types.layers != gemma::WeightType::kBf16;
  if (embed_type.empty()) embed_type = is_quantised ? "q8" : "bf16";
  options.types.embed = gemma::parse_weight_type(embed_type);
  if (is_chat || is_raw) options.is_chat = is_chat;
  if (!text_file.empty() && options.types == gemma::WeightTypes{}) {
    std::fprintf(stderr, "gemma-convert: --calibrate is for --type q8 and q4 (see gemma-convert --help)\n");
    return kWrongUsage;
  }
  catch_signals();
  if (!text_file.empty()) options.importance = calibrate(options.source, text_file, is_quiet);
  gemma::Conversion made;
  {
    gemma::ProgressBar bar(!is_quiet && isatty(STDERR_FILENO) == 1, gemma::ProgressBar::kBytes);
    options.progress = [&bar](std::uint64_t done, std::uint64_t total) {
      bar.update(done, total);
      return is_interrupted == 0;
    };
    made = gemma::convert(options);
  }
  if (!is_quiet) report(made, options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gemma-convert: %s\n", error.what());
    return is_interrupted != 0 ? kInterrupted : kFailed;
  }
}
