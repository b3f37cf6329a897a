#pragma once

#include <charconv>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace gemma::cli {

/// All of a text as a number.
/// @return whether it is one; NaN and infinity are not.
template <typename T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  if constexpr (std::is_floating_point_v<T>) return std::isfinite(value);
  return true;
}

/// A check for a CLI11 option: a whole number from `low` to `high`. @return what is wrong, or nothing.
template <typename T>
auto whole_number(T low, T high = std::numeric_limits<T>::max()) {
  return [low, high](const std::string& text) -> std::string {
    T value{};
    if (parse_number(text, value) && low <= value && value <= high) return {};
    const bool has_digits_alone = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    const bool is_too_large = has_digits_alone && !parse_number(text, value);
    const bool has_limit = is_too_large || high != std::numeric_limits<T>::max();
    return "'" + text + "' is not a whole number " +
           (has_limit ? "from " + std::to_string(low) + " to " + std::to_string(high)
                      : "of at least " + std::to_string(low));
  };
}

/// The same for any number within bounds told in words: number("above 0", [](float x) { return x > 0; }).
template <typename Predicate>
auto number(const char* bounds, Predicate is_allowed) {
  return [bounds, is_allowed](const std::string& text) -> std::string {
    float value = 0;
    if (parse_number(text, value) && is_allowed(value)) return {};
    return "'" + text + "' is not a number " + bounds;
  };
}

/// Token ids separated by white space or commas.
/// @param where  names the source in messages.
/// @throws gemma::Error if there is something else between them.
std::vector<int> parse_ids(std::string_view text, const std::string& where);

/// The same for ids that stand on the command line. @throws UsageError
std::vector<int> parse_argument_ids(std::string_view text, const std::string& argument);

}  // namespace gemma::cli
