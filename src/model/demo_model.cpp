#include "model/model_file.h"

extern "C" {
extern const std::byte gemma_demo_model_begin[];
extern const std::byte gemma_demo_model_end[];
}

namespace gemma {

Model load_demo_model() {
  return load_model(std::span(gemma_demo_model_begin, gemma_demo_model_end), "the built-in demo model");
}

}  // namespace gemma
