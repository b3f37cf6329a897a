#include "runtime/transformer.h"

#include <algorithm>
#include <span>

namespace gemma {

std::vector<Output> forward(const Config& config, Device& device, const Batch& batch) {
  device.embed(batch);
  for (int layer = 0; layer < config.layer_count(); ++layer) {
    device.qkv(batch, layer);
    device.attend(batch, layer);
    device.attention_out(batch, layer);
    device.mlp(batch, layer);
  }

  std::vector<Output> answers(batch.outputs.size());
  const int outputs = static_cast<int>(answers.size());
  for (int first = 0; first < outputs; first += device.max_logit_rows()) {
    const int count = std::min(device.max_logit_rows(), outputs - first);
    device.logits(batch, first, count);
    device.sample(batch, first, count, std::span(answers).subspan(first, count));
  }
  return answers;
}

}  // namespace gemma
