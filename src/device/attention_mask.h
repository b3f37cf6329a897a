#pragma once

#include "device/host_device.h"

namespace gemma {

/// The score of a key that a query may not see. Finite, so that a row or a tile without any visible key gives finite
/// numbers (inf - inf would be NaN). The value is the one in google/gemma_pytorch.
inline constexpr float kMaskedScore = -2.3819763e38f;

/// A window that hides nothing: that of a global layer.
inline constexpr int kNoWindow = 0x7fffffff;

/// Whether the query at position `query` may see the key at position `key`: causal, and in a local layer at most
/// `window` positions back, the query's own position included. Positions are >= 0, window is >= 1.
GEMMA_HOST_DEVICE constexpr bool is_visible(int query, int key, int window) {
  return key <= query && query - key < window;
}

/// The mask as it is added to a score: 0 where the key is visible, kMaskedScore elsewhere.
GEMMA_HOST_DEVICE constexpr float attention_mask(int query, int key, int window) {
  return is_visible(query, key, window) ? 0.0f : kMaskedScore;
}

/// The first position that the query at `query` sees.
GEMMA_HOST_DEVICE constexpr int first_visible(int query, int window) { return query < window ? 0 : query - window + 1; }

}  // namespace gemma
