#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "cli/line_reader.h"

namespace gemma::cli {

/// How the prompts of a batch are written.
enum class InputFormat { kText, kJsonLines };

/// By the name's ending. @throws UsageError if it tells neither.
InputFormat input_format(const std::filesystem::path& path);

/// The lines of a batch that are prompts: all but blank ones. A byte order mark in front is left out.
class PromptReader {
 public:
  /// Longer lines cannot be done.
  static constexpr std::size_t kLongestLine = std::size_t{16} << 20;

  /// @param file  must outlive this.
  explicit PromptReader(const InputFile& file) : lines_(file, kLongestLine) {}

  /// @return whether there was one more; `index` is its number among the prompts, from 0.
  bool next(Line& line, std::uint64_t& index);

  const LineReader& lines() const { return lines_; }

 private:
  LineReader lines_;
  std::uint64_t count_ = 0;
};

/// What tells one input from another, and how much there is to do.
struct InputSurvey {
  std::uint64_t bytes = 0;
  std::string hash;
  std::uint64_t prompts = 0;
};

/// Reads all of a file once.
/// @param on_progress  hears now and then how many bytes have been read
InputSurvey survey_input(const InputFile& file, const std::function<void(std::uint64_t)>& on_progress);

}  // namespace gemma::cli
