#include "cli/batch_input.h"

#include <algorithm>
#include <cctype>

#include "cli/command.h"
#include "model/quote.h"

namespace gemma::cli {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_blank(const Line& line) {
  return !line.is_too_long && line.text.find_first_not_of(" \t\r\v\f") == std::string_view::npos;
}

}  // namespace

InputFormat input_format(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  if (ending == ".txt") return InputFormat::kText;
  if (ending == ".jsonl" || ending == ".ndjson") return InputFormat::kJsonLines;
  throw UsageError("INPUT must end in .txt (a prompt a line) or .jsonl, and " + in_quotes(path.native()) + " does not");
}

bool PromptReader::next(Line& line, std::uint64_t& index) {
  do {
    if (!lines_.next(line)) return false;
    if (line.offset == 0 && line.text.starts_with(kByteOrderMark)) line.text.remove_prefix(kByteOrderMark.size());
  } while (is_blank(line));
  index = count_++;
  return true;
}

InputSurvey survey_input(const InputFile& file, const std::function<void(std::uint64_t)>& on_progress) {
  constexpr std::uint64_t kReportEvery = std::uint64_t{64} << 20;
  PromptReader prompts(file);
  InputSurvey survey;
  Line line;
  std::uint64_t index = 0;
  std::uint64_t reported = 0;
  while (prompts.next(line, index)) {
    ++survey.prompts;
    if (prompts.lines().bytes() - reported < kReportEvery) continue;
    reported = prompts.lines().bytes();
    on_progress(reported);
  }
  survey.bytes = file.size();
  survey.hash = prompts.lines().hash();
  return survey;
}

}  // namespace gemma::cli
