#include "runtime/transformer.h"

#include <algorithm>
#include <span>

namespace gemma {

namespace {

bool has_prompt_rows(const Batch& batch) {
  return std::any_of(batch.rows.begin(), batch.rows.end(), [](const Row& row) { return row.kind == RowKind::kPrompt; });
}

}  // namespace

void begin_forward(const Config& config, Device& device, const Batch& batch, std::span<Output> answers) {
  const bool generated_rows_are_done = device.decode_at_once(batch);
  if (!generated_rows_are_done || has_prompt_rows(batch)) {
    device.embed(batch);
    for (int layer = 0; layer < config.layer_count(); ++layer) {
      device.qkv(batch, layer);
      device.attend(batch, layer);
      device.attention_out(batch, layer);
      device.mlp(batch, layer);
    }
  }

  const int outputs = static_cast<int>(batch.outputs.size());
  for (int first = 0; first < outputs; first += device.max_logit_rows()) {
    const int count = std::min(device.max_logit_rows(), outputs - first);
    device.logits(batch, first, count);
    device.sample(batch, first, count,
                  answers.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)));
  }
}

std::vector<Output> forward(const Config& config, Device& device, const Batch& batch) {
  std::vector<Output> answers(batch.outputs.size());
  begin_forward(config, device, batch, answers);
  device.finish(0);
  return answers;
}

}  // namespace gemma
