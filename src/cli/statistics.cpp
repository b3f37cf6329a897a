#include "cli/statistics.h"

#include <array>
#include <cstdio>

#include "cli/terminal.h"

namespace gemma::cli {
namespace {

std::string formatted(const char* format, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

}  // namespace

std::string count_of(std::uint64_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string grouped(std::uint64_t number) {
  std::string text = std::to_string(number);
  for (std::size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string with_unit(std::uint64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"kB", "MB", "GB", "TB"};
  if (bytes < 1000) return count_of(bytes, "byte");
  double value = static_cast<double>(bytes) / 1000;
  std::size_t unit = 0;
  // What rounds to 1000.0 belongs to the next unit.
  for (; value >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return formatted("%.1f ", value) + kUnits[unit];
}

std::string in_tokens(int tokens, double seconds) {
  std::string text = count_of(static_cast<std::uint64_t>(tokens), "token") + formatted(" in %.3f s", seconds);
  if (tokens > 0 && seconds > 0) text += formatted(" (%.1f tokens/s)", tokens / seconds);
  return text;
}

void print_statistic(const std::string& name, const std::string& text) {
  constexpr std::size_t kColumn = 8;
  print_note(name + std::string(name.size() < kColumn ? kColumn - name.size() : 1, ' ') + text);
}

void print_engine(const EngineInfo& info, double load_s) {
  print_statistic("model", info.model + (load_s > 0 ? formatted(", loaded in %.3f s", load_s) : ""));
  print_statistic("device", info.device);
  print_statistic("memory",
                  with_unit(info.weights_bytes) + " of weights, " + with_unit(info.cache_bytes) +
                      " of cache for a context of " + std::to_string(info.context) +
                      (info.device_bytes > 0 ? "; " + with_unit(info.device_bytes) + " of GPU memory in all" : ""));
}

}  // namespace gemma::cli
