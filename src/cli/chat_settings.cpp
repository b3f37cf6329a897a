#include "cli/chat_settings.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <optional>

#include "cli/generation_options.h"
#include "gemma/error.h"

namespace gemma::cli {
namespace {

constexpr const char* kModelsOwn = "the model's";

std::string to_text(float value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

template <typename T>
std::string to_text(T value) {
  return std::to_string(value);
}

template <typename T>
std::string to_text(const std::optional<T>& value) {
  return value ? to_text(*value) : kModelsOwn;
}

std::string to_text(bool value) { return value ? "on" : "off"; }

std::string to_text(const std::vector<std::string>& texts) {
  std::string joined;
  for (const std::string& text : texts) joined += (joined.empty() ? "'" : ", '") + text + "'";
  return joined.empty() ? "none" : joined;
}

// Without the quotes around it, in which spaces can be written as the shell would take them, and as `/set` shows texts.
std::string without_quotes(const std::string& value) {
  const bool is_quoted =
      value.size() >= 2 && (value.front() == '"' || value.front() == '\'') && value.back() == value.front();
  return is_quoted ? value.substr(1, value.size() - 2) : value;
}

// A setting: its name, its value as text, and how to take it over from other options.
struct Setting {
  const char* name;
  std::function<std::string(const GenerationOptions&)> show;
  std::function<void(GenerationOptions&, const GenerationOptions&)> take;
};

template <typename T>
Setting setting(const char* name, T GenerationOptions::*member) {
  return {name, [member](const GenerationOptions& options) { return to_text(options.*member); },
          [member](GenerationOptions& options, const GenerationOptions& other) { options.*member = other.*member; }};
}

const std::vector<Setting>& settings() {
  static const std::vector<Setting> kSettings = {
      setting("max-tokens", &GenerationOptions::max_tokens),
      setting("temperature", &GenerationOptions::temperature),
      setting("top-k", &GenerationOptions::top_k),
      setting("top-p", &GenerationOptions::top_p),
      setting("min-p", &GenerationOptions::min_p),
      setting("repeat-penalty", &GenerationOptions::repeat_penalty),
      setting("seed", &GenerationOptions::seed),
      setting("stop", &GenerationOptions::stop),
      setting("ignore-eos", &GenerationOptions::ignore_eos),
  };
  return kSettings;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> settings_of(const GenerationOptions& options) {
  std::vector<std::pair<std::string, std::string>> values;
  for (const Setting& setting : settings()) values.emplace_back(setting.name, setting.show(options));
  return values;
}

void change_setting(GenerationOptions& options, const std::string& name, const std::string& value) {
  const auto found = std::find_if(settings().begin(), settings().end(),
                                  [&name](const Setting& setting) { return name == setting.name; });
  if (found == settings().end()) {
    std::string names;
    for (const Setting& setting : settings()) names += (names.empty() ? "" : ", ") + std::string(setting.name);
    throw Error("there is no setting '" + name + "'; there are " + names);
  }
  GenerationOptions changed;
  if (!value.empty()) {
    CLI::App app;
    add_generation_options(app, changed);
    try {
      app.parse(std::vector<std::string>{"--" + name + "=" + without_quotes(value)});
    } catch (const CLI::ParseError& error) {
      // "--temperature: ..." speaks of an option of the command line.
      const std::string message = error.what();
      throw Error(message.starts_with("--") ? message.substr(2) : message);
    }
  }
  found->take(options, changed);
}

}  // namespace gemma::cli
