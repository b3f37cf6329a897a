#include <iostream>

#include "gemma/engine.h"

int main() {
  gemma::Engine engine(gemma::EngineOptions{});  // .model names a file; without one: the built-in demo model
  gemma::Request request;
  request.prompt = "Once upon a time";
  request.options.max_tokens = 100;
  engine.generate(request, [](std::string_view text) { return bool(std::cout << text << std::flush); });
}
