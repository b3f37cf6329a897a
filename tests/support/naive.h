#pragma once

#include <optional>
#include <span>
#include <vector>

#include "device/device.h"
#include "model/model.h"

/// Gemma 2 as slowly and obviously as possible: whole texts, full score matrices, double precision, no cache, no
/// chunks. What the devices are held to; it shares no arithmetic with them.
namespace gemma::naive {

using Vector = std::vector<double>;
using Vectors = std::vector<Vector>;  ///< one for each position

/// The shape of one attention layer.
struct Attention {
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 1;
  int window = 1;  ///< kNoWindow: global
  std::optional<double> softcap;
};

/// exp(s) / sum(exp(s)); finite for any finite scores, those of a fully masked row included.
Vector softmax(const Vector& scores);

/// Softmax(softcap(q k) + mask) v, one head and one query after the other.
/// @param q        [positions][heads * head_dim], already scaled
/// @param k        [positions][kv_heads * head_dim]
/// @param v        [positions][kv_heads * head_dim]
/// @param largest  when not null: raised to the largest magnitude of a visible score before the soft cap
/// @return [positions][heads * head_dim]
Vectors attend(const Attention& attention, const Vectors& q, const Vectors& k, const Vectors& v,
               double* largest = nullptr);

/// How inputs of matrix products are rounded.
enum class RoundedInputs {
  kNone,
  kBf16,
  kWholeNumbers,  ///< if no norm gave them, to bf16; then to what, of each 32, leaves the largest 11 bits
};

/// Departures from Gemma 2: rounding as a device does it, or a mistake made on purpose to see that a test would notice
/// it.
struct Departures {
  KvType cache = KvType::kF32;  ///< any other: keys and values are rounded to it
  RoundedInputs rounded_inputs = RoundedInputs::kNone;
  double norm_offset = 1;  ///< what RMSNorm adds to its weights
  int query_shift = 0;     ///< positions by which the rotation of queries runs ahead of that of keys
};

struct Answer {
  Vectors logits;            ///< [positions][vocab], soft-capped
  double largest_score = 0;  ///< largest magnitude of a visible attention score before its soft cap
};

/// The whole of Gemma 2 on a whole text. The window is that of model.config.
Answer forward(const Model& model, std::span<const int> tokens, const Departures& departures = {});

}  // namespace gemma::naive
