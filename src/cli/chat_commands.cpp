#include "cli/chat_commands.h"

#include <algorithm>
#include <array>

#include "cli/statistics.h"
#include "cli/terminal.h"
#include "cli/typed_text.h"
#include "gemma/error.h"
#include "tokenizer/utf8.h"

namespace gemma::cli {
namespace {

// The beginning of a text, on one line.
std::string beginning_of(const std::string& text) {
  constexpr std::size_t kLongest = 40;
  std::string line = text.substr(0, text.find('\n'));
  if (line.size() > kLongest) line.resize(kLongest);
  if (const std::size_t cut = find_invalid_utf8(line); cut != std::string::npos) line.resize(cut);
  return "'" + harmless(line) + (line.size() < text.size() ? "...'" : "'");
}

void print_columns(const std::string& name, const std::string& text) {
  constexpr std::size_t kColumn = 24;
  print_note("  " + name + std::string(name.size() < kColumn ? kColumn - name.size() : 1, ' ') + text);
}

Reaction help(Dialogue& dialogue, const std::string& argument);

Reaction reset(Dialogue& dialogue, const std::string&) {
  dialogue.reset();
  dialogue.note("The conversation begins anew.");
  return Reaction::kGoOn;
}

Reaction undo(Dialogue& dialogue, const std::string&) {
  dialogue.note("Taken back: " + beginning_of(dialogue.undo()));
  return Reaction::kGoOn;
}

Reaction retry(Dialogue& dialogue, const std::string&) {
  return dialogue.retry() ? Reaction::kGoOn : Reaction::kInterrupted;
}

Reaction set_system(Dialogue& dialogue, const std::string& text) {
  if (text.empty()) {
    const std::string& system = dialogue.conversation().system;
    print_note(system.empty() ? "There is no system text." : "The system text is: " + harmless(system));
  } else {
    dialogue.set_system(text == "-" ? "" : text);
    dialogue.note(text == "-" ? "There is no system text any more." : "The system text is set.");
  }
  return Reaction::kGoOn;
}

Reaction save(Dialogue& dialogue, const std::string& file) {
  if (file.empty()) throw Error("/save needs the name of a file");
  dialogue.save(expand_home(file));
  dialogue.note("Saved " + count_of(dialogue.conversation().turns.size(), "turn") + ".");
  return Reaction::kGoOn;
}

Reaction load(Dialogue& dialogue, const std::string& file) {
  if (file.empty()) throw Error("/load needs the name of a file");
  dialogue.load(expand_home(file));
  const std::vector<Turn>& turns = dialogue.conversation().turns;
  dialogue.note("Loaded " + count_of(turns.size(), "turn") + "." +
                (turns.empty() ? "" : " The last message was " + beginning_of(turns.back().question)));
  return Reaction::kGoOn;
}

Reaction set(Dialogue& dialogue, const std::string& argument) {
  const std::size_t end = std::min(argument.find_first_of(" \t"), argument.size());
  const std::string name = argument.substr(0, end);
  if (!name.empty()) dialogue.change(name, std::string(trim(std::string_view(argument).substr(end))));
  for (const auto& [setting, value] : dialogue.settings()) {
    if (name.empty() || name == setting) print_columns(setting, harmless(value));
  }
  return Reaction::kGoOn;
}

Reaction stats(Dialogue& dialogue, const std::string&) {
  dialogue.show_statistics();
  return Reaction::kGoOn;
}

Reaction leave(Dialogue&, const std::string&) { return Reaction::kLeave; }

struct ChatCommand {
  const char* name;
  const char* argument;
  const char* help;
  Reaction (*run)(Dialogue& dialogue, const std::string& argument);
};

constexpr std::array<ChatCommand, 11> kCommands = {{
    {"help", "", "this list", help},
    {"reset", "", "begin anew; the system text stays", reset},
    {"undo", "", "take back the last message and its answer", undo},
    {"retry", "", "answer the last message once more", retry},
    {"system", "[TEXT]", "what stands before everything; - for nothing", set_system},
    {"save", "FILE", "keep the conversation in a file", save},
    {"load", "FILE", "go on with a conversation from a file", load},
    {"set", "[OPTION [VALUE]]", "show or change how answers are made", set},
    {"stats", "", "speed of the last turn, length, memory", stats},
    {"exit", "", "leave; Ctrl-D does that, too", leave},
    {"quit", "", "the same", leave},
}};

Reaction help(Dialogue&, const std::string&) {
  for (const ChatCommand& command : kCommands) {
    print_columns("/" + std::string(command.name) + " " + command.argument, command.help);
  }
  print_columns("//TEXT", "a message that begins with a slash");
  print_columns("\"\"\"TEXT\"\"\"", "a message of several lines");
  print_columns("TEXT\\", "goes on in the next line");
  print_columns("Ctrl-C", "stops an answer, or takes back a line");
  return Reaction::kGoOn;
}

}  // namespace

Reaction obey(Dialogue& dialogue, const std::string& name, const std::string& argument) {
  const auto* command = std::find_if(kCommands.begin(), kCommands.end(),
                                     [&name](const ChatCommand& candidate) { return name == candidate.name; });
  if (command == kCommands.end()) {
    throw Error("there is no command " + beginning_of("/" + name) +
                "; /help lists them, and a message that begins with a slash takes two: //...");
  }
  if (*command->argument == '\0' && !argument.empty()) throw Error("/" + name + " takes nothing behind it");
  return command->run(dialogue, argument);
}

}  // namespace gemma::cli
