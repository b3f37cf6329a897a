#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace gemma {

/// Parses JSON from outside that must be an object.
/// @param where  begins the message of an error, for example "config.json".
/// @throws Error if it is not one.
nlohmann::json parse_json_object(const std::string& text, const std::string& where);

/// The value as an int; nullopt if it is not a whole number or does not fit.
std::optional<int> to_int(const nlohmann::json& value);

/// Reads typed members of a JSON object from outside. A member that is null counts as absent, as Hugging Face has it.
/// All throw Error, naming object and member, when a member has another type or does not fit, and those that do not
/// return an optional also when it is absent.
class JsonFields {
 public:
  /// @param object  must be an object and outlive this.
  JsonFields(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  bool has(const char* name) const { return find(name) != nullptr; }
  const nlohmann::json& member(const char* name) const;

  int integer(const char* name) const;
  double number(const char* name) const;
  bool boolean(const char* name) const;
  std::string text(const char* name) const;

  std::optional<int> optional_integer(const char* name) const;
  std::optional<double> optional_number(const char* name) const;
  std::optional<bool> optional_boolean(const char* name) const;
  std::optional<std::string> optional_text(const char* name) const;

  [[noreturn]] void fail(const std::string& problem) const;

 private:
  const nlohmann::json* find(const char* name) const;  // nullptr if absent or null

  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace gemma
