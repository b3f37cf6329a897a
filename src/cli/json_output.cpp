#include "cli/json_output.h"

#include "cli/terminal.h"

namespace gemma::cli {

void print_json(const Json& document) {
  print(document.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n");
}

}  // namespace gemma::cli
