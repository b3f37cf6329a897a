#pragma once

// Messages: how the blocks of the grid pass numbers on while a single row is decoded.
//
// A message is a number beside a tag, written and read as one word. The tag tells which product of which step the
// number belongs to, so a reader sees by itself whether it has come, and looks again if not. The barrier between
// writing and reading only says when looking is worth while: nobody waits until all that a block has written can be
// seen by all others, which takes longer than a barrier while memory is busy (NOTES.md).

#include "decode.cuh"
#include "ptx.cuh"

namespace gemma {

/// The tag of what a step's first product gives, and of what is made of it before the next one, which has the tag
/// after.
__device__ inline unsigned first_tag(const DecodeModel& model, unsigned step) {
  return step * static_cast<unsigned>(4 * model.layers + 1) + 1;
}

// --- float32 beside a tag of 32 bits ---

__device__ inline unsigned long long message(float value, unsigned tag) {
  return static_cast<unsigned long long>(tag) << 32 | __float_as_uint(value);
}
__device__ inline bool has_come(unsigned long long word, unsigned tag) { return word >> 32 == tag; }
__device__ inline float value_of(unsigned long long word) { return __uint_as_float(static_cast<unsigned>(word)); }

__device__ inline bool have_come(const ulonglong2& pair, unsigned tag) {
  return has_come(pair.x, tag) && has_come(pair.y, tag);
}

/// Calls ask(), which asks for messages and returns whether all have come, until they have.
template <class Ask>
__device__ void ask_until_come(const Ask& ask) {
  while (!ask()) {
  }
}

/// @param to  two neighbouring messages, aligned to 16 bytes; so is `from` in what follows
__device__ inline void send(unsigned long long* to, float2 values, unsigned tag) {
  store_relaxed_pair(to, message(values.x, tag), message(values.y, tag));
}

/// A row of messages.
struct MessageRow {
  const unsigned long long* words;
  unsigned tag;

  /// As ProductRow's.
  template <class Value, int kCount>
  __device__ void read(const int (&at)[kCount], Value (&values)[kCount]) const {
    constexpr int kFloats = sizeof(Value) / sizeof(float);
    static_assert(kFloats == 1 || kFloats == 4);
    if constexpr (kFloats == 1) {
      unsigned long long found[kCount] = {};
      ask_until_come([&] {
        bool is_complete = true;
#pragma unroll
        for (int i = 0; i < kCount; ++i) load_relaxed_if(at[i] >= 0, words + at[i], found[i]);
#pragma unroll
        for (int i = 0; i < kCount; ++i) is_complete = is_complete && (at[i] < 0 || has_come(found[i], tag));
        return is_complete;
      });
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = at[i] < 0 ? 0 : value_of(found[i]);
    } else {
      ulonglong2 found[kCount][2] = {};
      ask_until_come([&] {
        bool is_complete = true;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) load_relaxed_pair_if(at[i] >= 0, words + 4 * at[i] + 2 * j, found[i][j]);
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          is_complete = is_complete && (at[i] < 0 || (have_come(found[i][0], tag) && have_come(found[i][1], tag)));
        return is_complete;
      });
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] = Value{};
        if (at[i] >= 0)
          values[i] = {value_of(found[i][0].x), value_of(found[i][0].y), value_of(found[i][1].x),
                       value_of(found[i][1].y)};
      }
    }
  }
};

/// The only row of a product, as Product.
struct SentProduct {
  MessageRow only_row;

  __device__ const MessageRow& row(int /*i*/) const { return only_row; }
};

// --- bf16 in the upper half of a word, the lower 16 bits of the tag in the lower ---

__device__ inline unsigned short_message(float value, unsigned tag) { return pack_bf16(0, value) | (tag & 0xffff); }

/// Eight neighbouring ones.
struct ShortMessages {
  uint4 first, second;

  __device__ bool have_come(unsigned tag) const {
    const unsigned differences = (first.x ^ tag) | (first.y ^ tag) | (first.z ^ tag) | (first.w ^ tag) |
                                 (second.x ^ tag) | (second.y ^ tag) | (second.z ^ tag) | (second.w ^ tag);
    return (differences & 0xffff) == 0;
  }
  /// Their values, in bf16.
  __device__ uint4 values() const {
    return {upper_halves(first.x, first.y), upper_halves(first.z, first.w), upper_halves(second.x, second.y),
            upper_halves(second.z, second.w)};
  }

 private:
  __device__ static unsigned upper_halves(unsigned a, unsigned b) { return __byte_perm(a, b, 0x7632); }
};

}  // namespace gemma
