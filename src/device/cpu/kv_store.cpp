#include "device/cpu/kv_store.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "gemma/error.h"

namespace gemma {
namespace {

constexpr int kKeys = 0;
constexpr int kValues = 1;

double layer_bytes(const Config& config, KvType type) {
  return 2.0 * config.kv_heads * static_cast<double>(head_bytes(type, config.head_dim));
}

double ring_bytes(const Config& config, const KvLayout& layout) {
  return layer_bytes(config, layout.type) * config.local_layer_count() * layout.rings * layout.ring_slots;
}

double page_bytes(const Config& config, const KvLayout& layout) {
  return layer_bytes(config, layout.type) * config.global_layer_count() * layout.pages * kPagePositions;
}

/// Bytes of an element, scales aside.
std::size_t element_bytes(KvType type) { return type == KvType::kF32 ? 4 : type == KvType::kBf16 ? 2 : 1; }

void convert(const float* from, float* to) { *to = *from; }
void convert(const float* from, bf16* to) { *to = to_bf16(*from); }

/// @param keys    [head_dim, kPagePositions] from the first position's column.
/// @param values  [.., head_dim] from the first position's row.
template <typename T>
void write_positions(T* keys, T* values, int head_dim, int count, const float* new_keys, const float* new_values,
                     std::size_t stride) {
  for (int i = 0; i < head_dim; ++i) {
    for (int p = 0; p < count; ++p) convert(new_keys + p * stride + i, keys + i * kPagePositions + p);
  }
  for (int p = 0; p < count; ++p) {
    for (int i = 0; i < head_dim; ++i) convert(new_values + p * stride + i, values + p * head_dim + i);
  }
}

/// Quantises one key or value: scale = max|x| / 127, codes rounded to nearest, ties to even.
/// @param codes  `step` elements apart.
/// @return the scale; NaN if an element is infinite or NaN.
float quantise(const float* x, int head_dim, std::int8_t* codes, int step) {
  float max = 0;
  float nothing = 0;  // NaN if there is anything that is not finite
  for (int i = 0; i < head_dim; ++i) {
    max = std::max(max, std::abs(x[i]));
    nothing += 0 * x[i];
  }
  // The inverse of a smaller one would be infinite.
  if (max < 1e-36f) max = 0;
  const float factor = max > 0 ? 127 / max : 0;
  constexpr float kRound = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, which is then in the lowest bits
  for (int i = 0; i < head_dim; ++i) {
    codes[i * step] = static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(x[i] * factor + kRound) & 0xffu);
  }
  return max / 127 + nothing;
}

/// @param keys, values              as in write_positions, in codes.
/// @param key_scales, value_scales  from the first position on.
void write_quantised(std::int8_t* keys, float* key_scales, std::int8_t* values, float* value_scales, int head_dim,
                     int count, const float* new_keys, const float* new_values, std::size_t stride) {
  for (int p = 0; p < count; ++p) {
    key_scales[p] = quantise(new_keys + p * stride, head_dim, keys + p, kPagePositions);
    value_scales[p] = quantise(new_values + p * stride, head_dim, values + p * head_dim, 1);
  }
}

}  // namespace

double KvStore::bytes(const Config& config, const KvLayout& layout) {
  return ring_bytes(config, layout) + page_bytes(config, layout);
}

KvStore::KvStore(const Config& config, const KvLayout& layout)
    : layout_(layout),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      local_layers_(config.local_layer_count()),
      global_layers_(config.global_layer_count()),
      block_bytes_(static_cast<std::size_t>(kPagePositions) * head_bytes(layout.type, config.head_dim)),
      scales_offset_(static_cast<std::size_t>(kPagePositions) * static_cast<std::size_t>(config.head_dim) *
                     element_bytes(layout.type)),
      kinds_(config.layers) {
  if (layout.window < 1 || layout.rings < 0 || layout.ring_slots < 0 || layout.ring_slots % kPagePositions != 0 ||
      layout.pages < 0) {
    throw Error("cannot lay out a cache with a window of " + std::to_string(layout.window) + ", " +
                std::to_string(layout.rings) + " rings of " + std::to_string(layout.ring_slots) +
                " slots (a multiple of " + std::to_string(kPagePositions) + ") and " + std::to_string(layout.pages) +
                " pages");
  }
  int locals = 0;
  int globals = 0;
  for (const LayerKind kind : kinds_) index_among_its_kind_.push_back(kind == LayerKind::kLocal ? locals++ : globals++);
  rings_ = Memory(static_cast<std::size_t>(ring_bytes(config, layout)), "local layers' cache");
  pages_ = Memory(static_cast<std::size_t>(page_bytes(config, layout)), "global layers' cache");
}

std::byte* KvStore::ring_block(int ring, int local_layer, int part, int kv_head, int slot) const {
  std::size_t index = static_cast<std::size_t>(ring);
  index = index * local_layers_ + local_layer;
  index = index * 2 + part;
  index = index * kv_heads_ + kv_head;
  index = index * (layout_.ring_slots / kPagePositions) + slot / kPagePositions;
  return rings_.data() + index * block_bytes_;
}

KvBlock KvStore::block(const SequenceRows& sequence, int layer, int kv_head, int position) const {
  const MutableBlock found = find(sequence, layer, kv_head, position);
  return {found.keys, found.values};
}

KvStore::MutableBlock KvStore::find(const SequenceRows& sequence, int layer, int kv_head, int position) const {
  const int index = index_among_its_kind_[layer];
  if (kinds_[layer] == LayerKind::kLocal) {
    const int slot = position % layout_.ring_slots;
    return {ring_block(sequence.ring, index, kKeys, kv_head, slot),
            ring_block(sequence.ring, index, kValues, kv_head, slot)};
  }
  const int page = sequence.pages[static_cast<std::size_t>(position / kPagePositions)];
  assert(page >= 0 && page < layout_.pages);
  const std::size_t keys =
      ((static_cast<std::size_t>(page) * global_layers_ + index) * 2 + kKeys) * kv_heads_ + kv_head;
  return {pages_.data() + keys * block_bytes_, pages_.data() + (keys + kv_heads_) * block_bytes_};
}

void KvStore::write(const SequenceRows& sequence, int layer, int kv_head, int position, int count, const float* keys,
                    const float* values, std::size_t stride) {
  const MutableBlock target = find(sequence, layer, kv_head, position);
  const int offset = position % kPagePositions;
  assert(offset + count <= kPagePositions);
  const auto write_as = [&]<typename T>(T*) {
    write_positions(reinterpret_cast<T*>(target.keys) + offset,
                    reinterpret_cast<T*>(target.values) + static_cast<std::size_t>(offset) * head_dim_, head_dim_,
                    count, keys, values, stride);
  };
  switch (layout_.type) {
    case KvType::kF32:
      return write_as(static_cast<float*>(nullptr));
    case KvType::kBf16:
      return write_as(static_cast<bf16*>(nullptr));
    case KvType::kQ8:
      return write_quantised(reinterpret_cast<std::int8_t*>(target.keys) + offset,
                             reinterpret_cast<float*>(target.keys + scales_offset_) + offset,
                             reinterpret_cast<std::int8_t*>(target.values) + offset * head_dim_,
                             reinterpret_cast<float*>(target.values + scales_offset_) + offset, head_dim_, count, keys,
                             values, stride);
  }
}

void KvStore::copy_ring(int from, int to) {
  if (rings_.bytes() == 0 || from == to) return;
  const std::size_t bytes = rings_.bytes() / static_cast<std::size_t>(layout_.rings);
  std::memcpy(rings_.data() + to * bytes, rings_.data() + from * bytes, bytes);
}

void KvStore::copy_page(int from, int to) {
  if (pages_.bytes() == 0 || from == to) return;
  const std::size_t bytes = pages_.bytes() / static_cast<std::size_t>(layout_.pages);
  std::memcpy(pages_.data() + to * bytes, pages_.data() + from * bytes, bytes);
}

std::size_t KvStore::slot_bytes() const {
  return std::size_t{2} * local_layers_ * kv_heads_ * head_bytes(layout_.type, head_dim_);
}

template <typename Visit>
void KvStore::visit_slots(int ring, int first_slot, int count, Visit&& visit) const {
  const std::size_t element = element_bytes(layout_.type);
  for (int slot = first_slot; slot < first_slot + count; ++slot) {
    const std::size_t in_block = static_cast<std::size_t>(slot % kPagePositions);
    for (int layer = 0; layer < local_layers_; ++layer) {
      for (int head = 0; head < kv_heads_; ++head) {
        std::byte* keys = ring_block(ring, layer, kKeys, head, slot);
        std::byte* values = ring_block(ring, layer, kValues, head, slot);
        for (int i = 0; i < head_dim_; ++i) visit(keys + (i * kPagePositions + in_block) * element, element);
        visit(values + in_block * head_dim_ * element, head_dim_ * element);
        if (layout_.type != KvType::kQ8) continue;
        visit(keys + scales_offset_ + in_block * sizeof(float), sizeof(float));
        visit(values + scales_offset_ + in_block * sizeof(float), sizeof(float));
      }
    }
  }
}

void KvStore::read_slots(int ring, int slot, int count, std::span<std::byte> out) const {
  std::byte* to = out.data();
  visit_slots(ring, slot, count, [&to](const std::byte* piece, std::size_t bytes) {
    std::memcpy(to, piece, bytes);
    to += bytes;
  });
}

void KvStore::write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  visit_slots(ring, slot, count, [&from](std::byte* piece, std::size_t size) {
    std::memcpy(piece, from, size);
    from += size;
  });
}

}  // namespace gemma
