#include "cli/json_output.h"

#include "cli/terminal.h"

namespace gemma::cli {

std::string to_line(const Json& document) {
  return document.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

void print_json(const Json& document) { print(to_line(document) + "\n"); }

}  // namespace gemma::cli
