#include "model/json_fields.h"

#include <limits>

#include "gemma/error.h"

namespace gemma {

nlohmann::json parse_json_object(const std::string& text, const std::string& where) {
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw Error(where + " is damaged: it is not a JSON object");
  return json;
}

std::optional<int> to_int(const nlohmann::json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  // An unsigned number beyond the signed ones must not wrap into them.
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<int>::max()) return std::nullopt;
  const auto number = value.get<std::int64_t>();
  if (number < std::numeric_limits<int>::min() || number > std::numeric_limits<int>::max()) return std::nullopt;
  return static_cast<int>(number);
}

void JsonFields::fail(const std::string& problem) const { throw Error(where_ + " " + problem); }

const nlohmann::json* JsonFields::find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const nlohmann::json& JsonFields::member(const char* name) const {
  const nlohmann::json* value = find(name);
  if (value == nullptr) fail(std::string("has no '") + name + "'");
  return *value;
}

int JsonFields::integer(const char* name) const {
  const nlohmann::json& value = member(name);
  if (!value.is_number_integer()) fail(std::string("has a '") + name + "' that is not a whole number");
  const std::optional<int> fitting = to_int(value);
  if (!fitting) fail(std::string("has a '") + name + "' that is out of range");
  return *fitting;
}

double JsonFields::number(const char* name) const {
  const nlohmann::json& value = member(name);
  if (!value.is_number()) fail(std::string("has a '") + name + "' that is not a number");
  return value.get<double>();
}

bool JsonFields::boolean(const char* name) const {
  const nlohmann::json& value = member(name);
  if (!value.is_boolean()) fail(std::string("has a '") + name + "' that is neither true nor false");
  return value.get<bool>();
}

std::string JsonFields::text(const char* name) const {
  const nlohmann::json& value = member(name);
  if (!value.is_string()) fail(std::string("has a '") + name + "' that is not a text");
  return value.get<std::string>();
}

std::optional<int> JsonFields::optional_integer(const char* name) const {
  return has(name) ? std::optional(integer(name)) : std::nullopt;
}

std::optional<double> JsonFields::optional_number(const char* name) const {
  return has(name) ? std::optional(number(name)) : std::nullopt;
}

std::optional<bool> JsonFields::optional_boolean(const char* name) const {
  return has(name) ? std::optional(boolean(name)) : std::nullopt;
}

std::optional<std::string> JsonFields::optional_text(const char* name) const {
  return has(name) ? std::optional(text(name)) : std::nullopt;
}

}  // namespace gemma
