#include "cli/numbers.h"

#include <algorithm>

#include "cli/command.h"
#include "gemma/error.h"

namespace gemma::cli {

std::vector<int> parse_ids(std::string_view text, const std::string& where) {
  constexpr std::string_view kSeparators = " \t\r\n,";
  constexpr std::size_t kLongestShown = 20;
  std::vector<int> ids;
  for (std::size_t at = text.find_first_not_of(kSeparators); at < text.size();
       at = text.find_first_not_of(kSeparators, at)) {
    const std::size_t end = std::min(text.find_first_of(kSeparators, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    int id = 0;
    if (!parse_number(word, id) || id < 0) {
      throw Error(where + ": '" + std::string(word.substr(0, kLongestShown)) + "' at offset " + std::to_string(at) +
                  " is not a token id; give whole numbers separated by spaces, such as \"2 506 483\"");
    }
    ids.push_back(id);
    at = end;
  }
  if (ids.empty()) throw Error(where + ": there are no token ids");
  return ids;
}

std::vector<int> parse_argument_ids(std::string_view text, const std::string& argument) {
  try {
    return parse_ids(text, argument);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

}  // namespace gemma::cli
