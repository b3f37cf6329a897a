#include "cli/dialogue.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "cli/chat_settings.h"
#include "cli/conversation_file.h"
#include "cli/interrupt.h"
#include "cli/result_output.h"
#include "cli/statistics.h"
#include "cli/terminal.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

constexpr auto kPatience = std::chrono::milliseconds(500);  // before a bar shows how far reading has got

std::uint64_t draw_seed() {
  std::random_device device;
  return std::uniform_int_distribution<std::uint64_t>()(device);
}

}  // namespace

Dialogue::Dialogue(Engine& engine, const CommonOptions& common, GenerationOptions options, std::string system)
    : engine_(engine),
      common_(common),
      options_(std::move(options)),
      session_(engine.open_session()),
      conversation_{std::move(system), {}},
      drawn_seed_(draw_seed()) {}

bool Dialogue::ask(const std::string& question) {
  retries_ = 0;
  return answer(conversation_, question);
}

bool Dialogue::retry() {
  if (conversation_.turns.empty()) throw Error("there is no message yet that could be answered once more");
  ++retries_;
  Conversation before = conversation_;
  before.turns.pop_back();
  return answer(std::move(before), conversation_.turns.back().question);
}

std::string Dialogue::undo() {
  if (conversation_.turns.empty()) throw Error("there is nothing to take back");
  std::string question = std::move(conversation_.turns.back().question);
  conversation_.turns.pop_back();
  retries_ = 0;
  return question;
}

void Dialogue::reset() {
  conversation_ = {conversation_.system, {}};
  retries_ = 0;
}

void Dialogue::save(const std::string& file) const { save_conversation(conversation_, engine_.info().model, file); }

void Dialogue::load(const std::string& file) {
  conversation_ = load_conversation(file, engine_.tokenizer());
  retries_ = 0;
}

void Dialogue::change(const std::string& name, const std::string& value) {
  change_setting(options_, name, value);
  if (name == "seed" && !options_.seed) drawn_seed_ = draw_seed();
}

std::vector<std::pair<std::string, std::string>> Dialogue::settings() const {
  GenerationOptions options = options_;
  options.seed = seed();
  return settings_of(options);
}

bool Dialogue::answer(Conversation before, const std::string& question) {
  const auto count_prompt = [this](std::span<const Message> messages) { return count(messages); };
  const int context = engine_.info().context;
  const int room = std::clamp(options_.max_tokens, 1, std::max(context / 4, 1));
  const std::optional<int> dropped = make_room(before, question, context, room, count_prompt);
  if (!dropped) {
    const int tokens = count(messages_of({conversation_.system, {}}, question));
    throw Error("this message is too long: it takes " + std::to_string(tokens) + " tokens of a context of " +
                std::to_string(context) + "; shorten it" +
                (conversation_.system.empty() ? "" : ", or the system text that stands before it"));
  }
  if (*dropped > 0) {
    note("The conversation has outgrown the context: its oldest " +
         (*dropped == 1 ? "turn is" : std::to_string(*dropped) + " turns are") + " forgotten.");
  }

  Result result = generate(before, question);
  const bool is_interrupted = result.finish_reason == FinishReason::kInterrupt;
  if (is_interrupted && result.tokens.empty()) {
    note(retries_ > 0 ? "Stopped before the first word: the answer that there was stays."
                      : "Stopped before the first word: this message is not part of the conversation.");
  } else {
    // Ids that spell more than the answer end in a stop text, which is no part of it.
    const bool is_spelled = spells(engine_.tokenizer(), result.tokens, result.text);
    before.turns.push_back({question, result.text, is_spelled ? result.tokens : std::vector<int>()});
    conversation_ = std::move(before);
    tell_why_it_ended(result);
  }
  last_ = std::move(result);
  if (common_.stats) show_statistics();
  return !is_interrupted;
}

Result Dialogue::generate(const Conversation& before, const std::string& question) {
  Request request;
  request.messages = messages_of(before, question);
  request.options = options_;
  request.options.seed = seed_of_turn(seed(), before, retries_);
  request.session = session_;

  const InterruptGuard interrupt;
  char last = 0;
  ProgressBar progress("Reading", !common_.quiet);
  const auto start = std::chrono::steady_clock::now();
  const auto on_text = [&](std::string_view text) {
    if (!common_.json && !text.empty()) {
      print_answer(text);
      last = text.back();
    }
    return !interrupt.was_interrupted();
  };
  const auto on_progress = [&](int read, int total) {
    const bool is_late = std::chrono::steady_clock::now() - start > kPatience;
    if (read == total) {
      progress.clear();
    } else if (is_late) {
      progress.update(static_cast<std::uint64_t>(read), static_cast<std::uint64_t>(total));
    }
    return !interrupt.was_interrupted();
  };
  Result result = engine_.generate(request, on_text, on_progress);
  progress.clear();
  if (common_.json) {
    Json document = to_json(result, engine_.tokenizer());
    document["cached_tokens"] = result.cached_tokens;
    print_json(document);
  } else if (last != '\n') {
    print("\n");
  }
  if (result.is_damaged) warn_of_damage(engine_.info());
  return result;
}

void Dialogue::tell_why_it_ended(const Result& result) const {
  if (result.finish_reason != FinishReason::kLength) return;
  if (result.prompt_tokens + static_cast<int>(result.tokens.size()) >= engine_.info().context) {
    note("The answer ends here because the context is full; the next message lets the oldest turns go.");
  } else {
    note("The answer ends here after max-tokens " + std::to_string(options_.max_tokens) +
         "; /set max-tokens N allows more.");
  }
}

void Dialogue::show_statistics() const {
  if (last_) print_speed(*last_);
  print_statistic("context", std::to_string(tokens()) + " of " + std::to_string(engine_.info().context) +
                                 " positions, in " + count_of(conversation_.turns.size(), "turn"));
  print_statistic("seed", std::to_string(seed()));
  print_engine(engine_.info(), last_ ? last_->timing.load_s : 0);
}

int Dialogue::count(std::span<const Message> messages) const {
  return engine_.count_tokens(messages, options_.parse_special ? ControlTokens::kParse : ControlTokens::kAsText);
}

int Dialogue::tokens() const {
  if (conversation_.turns.empty() && conversation_.system.empty()) return 0;
  // As a prompt the conversation has one more turn, with an empty question, behind what has been said.
  const int next_turn = count(messages_of({}, "")) - 1;
  // An answer that fills the context has no room for the end of its turn.
  return std::min(count(messages_of(conversation_, "")) - next_turn, engine_.info().context);
}

void Dialogue::report_seed() const {
  if (!last_ || options_.seed || common_.json || options_.temperature == 0.0f) return;
  note("Seed " + std::to_string(drawn_seed_) + ": the same with --seed " + std::to_string(drawn_seed_) + ".");
}

void Dialogue::note(const std::string& text) const {
  if (!common_.quiet) print_note(text);
}

}  // namespace gemma::cli
