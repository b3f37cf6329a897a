#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/common_options.h"
#include "cli/conversation.h"
#include "gemma/engine.h"

namespace gemma::cli {

/// A conversation that an engine answers, shown on standard output as it is made. The engine keeps what it has read and
/// said: a turn costs its own tokens, and so does one after undo() or retry().
class Dialogue {
 public:
  /// @param common  must outlive this, as the engine must: what is shown, and how.
  Dialogue(Engine& engine, const CommonOptions& common, GenerationOptions options, std::string system);

  /// Answers a message. What has been said until Ctrl-C counts as the answer; if that is nothing, the message is not
  /// part of the conversation.
  /// @return false if Ctrl-C stopped it.
  /// @throws Error if the message cannot be answered. The conversation is as it was then.
  bool ask(const std::string& question);

  /// Answers the last message once more, and differently.
  /// @throws Error as ask() does, and if there is none. The answer that there was stays if no other comes.
  bool retry();

  /// Takes back the last message and its answer. @return the message. @throws Error if there is none.
  std::string undo();

  void reset();  ///< forgets everything but the system text

  void save(const std::string& file) const;  ///< See save_conversation.
  void load(const std::string& file);        ///< See load_conversation; it takes the place of this one.

  void set_system(std::string system) { conversation_.system = std::move(system); }
  const Conversation& conversation() const { return conversation_; }

  /// Changes how answers are made (see change_setting).
  void change(const std::string& name, const std::string& value);
  std::vector<std::pair<std::string, std::string>> settings() const;  ///< See settings_of.

  void show_statistics() const;              ///< of the last answer, the conversation and the engine
  void report_seed() const;                  ///< how to get this conversation again, if nobody has chosen that
  void note(const std::string& text) const;  ///< on standard error, unless that is to be quiet

 private:
  // Answers a message behind what was said before it; that becomes the conversation if there is an answer.
  bool answer(Conversation before, const std::string& question);
  Result generate(const Conversation& before, const std::string& question);
  void tell_why_it_ended(const Result& result) const;
  int count(std::span<const Message> messages) const;  // tokens of a prompt
  int tokens() const;                                  // of the conversation, the last answer included
  std::uint64_t seed() const { return options_.seed.value_or(drawn_seed_); }

  Engine& engine_;
  const CommonOptions& common_;
  GenerationOptions options_;
  Session session_;
  Conversation conversation_;
  int retries_ = 0;  // of the last message
  std::uint64_t drawn_seed_;
  std::optional<Result> last_;
};

}  // namespace gemma::cli
