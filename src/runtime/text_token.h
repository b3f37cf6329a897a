#pragma once

#include "device/device.h"

namespace gemma {

/// A token of a text, and which family of kernels reads it: an answer that is read again keeps the kernels that made
/// it.
struct TextToken {
  int id = 0;
  RowKind kind = RowKind::kPrompt;

  friend bool operator==(const TextToken&, const TextToken&) = default;
};

}  // namespace gemma
