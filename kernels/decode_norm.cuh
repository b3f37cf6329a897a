#pragma once

// What is between two products of the decode step: the residual stream takes in what the last product gave, after its
// norm, and is normalised to be the next product's input.

#include <type_traits>

#include "decode_block.cuh"
#include "decode_digits.cuh"
#include "decode_product.cuh"

namespace gemma {

/// One row of the residual stream, shared out to all consumers of a block in units of four elements: consumer i has
/// units i, i + kConsumers, ...
class ResidualRow {
 public:
  static constexpr int kMaxUnits = 5;  // of a consumer
  static constexpr int kMaxHidden = 4 * kMaxUnits * kConsumers;

  /// @param is_there  whether the block has a row at all
  __device__ ResidualRow(int hidden, bool is_there)
      : units_(is_there ? hidden / 4 : 0), inverse_hidden_(1.0f / static_cast<float>(hidden)) {}

  /// Begins with a token's embedding.
  /// @param next_norm   of normalize()
  __device__ void embed(const __nv_bfloat16* embedding, float scale, const float* next_norm) {
    clear();
    each_unit([&](int i, int unit) {
      const uint2 four = __ldg(reinterpret_cast<const uint2*>(embedding) + unit);
      x_[i] = {low_half(four.x) * scale, high_half(four.x) * scale, low_half(four.y) * scale,
               high_half(four.y) * scale};
      next_norm_[i] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    });
  }

  /// The same from packed weights.
  /// @param tile  of the embedding that the token is in
  /// @param row   of the tile
  template <WeightType kType>
  __device__ void embed_packed(const std::byte* tile, int row, float scale, const float* next_norm) {
    clear();
    each_unit([&](int i, int unit) {
      const std::byte* const packed = tile + 4 * unit / kUnitColumns * unit_bytes(kType);
      const auto weight = [&](int j) { return packed_weight<kType>(packed, row, 4 * unit % kUnitColumns + j); };
      x_[i] = {weight(0) * scale, weight(1) * scale, weight(2) * scale, weight(3) * scale};
      next_norm_[i] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    });
  }

  /// Asks for the row, as store() has left it, and for the weights of the next norms: ahead of the wait for what they
  /// are applied to.
  /// @param added_norm  of what add() takes in
  /// @param next_norm   of normalize()
  __device__ void fetch(const float* row, const float* added_norm, const float* next_norm) {
    clear();
    each_unit([&](int i, int unit) {
      x_[i] = __ldcg(reinterpret_cast<const float4*>(row) + unit);
      added_norm_[i] = __ldg(reinterpret_cast<const float4*>(added_norm) + unit);
      next_norm_[i] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    });
  }

  /// Leaves the row in shared memory, where no other thread looks at this one's units.
  __device__ void keep(float* row) const {
    each_unit([&](int i, int unit) { reinterpret_cast<float4*>(row)[unit] = x_[i]; });
  }
  /// The same as fetch() of a row that keep() has left.
  __device__ void recall(const float* row, const float* added_norm, const float* next_norm) {
    clear();
    each_unit([&](int i, int unit) {
      x_[i] = reinterpret_cast<const float4*>(row)[unit];
      added_norm_[i] = __ldg(reinterpret_cast<const float4*>(added_norm) + unit);
      next_norm_[i] = __ldg(reinterpret_cast<const float4*>(next_norm) + unit);
    });
  }

  __device__ void store(float* row) const {
    each_unit([&](int i, int unit) { __stcg(reinterpret_cast<float4*>(row) + unit, x_[i]); });
  }

  /// x += RMSNorm(added)
  /// @param added  what the last product gave: ProductRow, or alike
  template <class Format, class AddedRow>
  __device__ void add(const Shared<Format>& shared, const AddedRow& added, float eps) {
    int units[kMaxUnits];
#pragma unroll
    for (int i = 0; i < kMaxUnits; ++i) units[i] = -1;
    each_unit([&](int i, int unit) { units[i] = unit; });
    float4 more[kMaxUnits];
    added.read(units, more);
    float squares = 0;
    each_unit([&](int i, int) { squares = add_squares(squares, more[i]); });
    const float scale = rsqrtf(fmaf(row_sum(shared.sums, squares), inverse_hidden_, eps));
    each_unit([&](int i, int) {
      x_[i] = {fmaf(__fmul_rn(more[i].x, scale), 1.0f + added_norm_[i].x, x_[i].x),
               fmaf(__fmul_rn(more[i].y, scale), 1.0f + added_norm_[i].y, x_[i].y),
               fmaf(__fmul_rn(more[i].z, scale), 1.0f + added_norm_[i].z, x_[i].z),
               fmaf(__fmul_rn(more[i].w, scale), 1.0f + added_norm_[i].w, x_[i].w)};
    });
  }

  /// Writes RMSNorm(x) as a product's input.
  /// @param at  where a column of it goes: columns 2i and 2i + 1 are neighbours
  template <class Format, class At>
  __device__ void normalize(const Shared<Format>& shared, float eps, const At& at) const {
    const float scale = norm_scale(shared, eps);
    each_unit([&](int i, int unit) {
      const float4 x = normalized(i, scale);
      *reinterpret_cast<std::uint32_t*>(at(4 * unit)) = pack_bf16(x.x, x.y);
      *reinterpret_cast<std::uint32_t*>(at(4 * unit + 2)) = pack_bf16(x.z, x.w);
    });
  }

  /// The same in digits (decode_digits.cuh).
  /// @param put  called with a unit of four columns, its digits as exchange_digits() gives them, and their group
  template <class Format, class Put>
  __device__ void normalize_to_digits(const Shared<Format>& shared, float eps, const Put& put) const {
    with_normalized(shared, eps, [&](const auto& x) {
      make_digits_of_units<kNeedsSums<Format::kLayers>, kLeastScaleOfHalves>(
          x, [&](int i, const FourDigits& digits, const DigitGroup& group) { put_unit(put, i, digits, group); });
    });
  }
  /// The same in float16 (make_halves_of_units()).
  /// @param put  called with a unit of four columns, two pairs of them, and their group
  template <class Format, class Put>
  __device__ void normalize_to_halves(const Shared<Format>& shared, float eps, const Put& put) const {
    with_normalized(shared, eps, [&](const auto& x) {
      make_halves_of_units<kNeedsSums<Format::kLayers>>(
          x, [&](int i, const uint2& pairs, const DigitGroup& group) { put_unit(put, i, pairs, group); });
    });
  }

 private:
  template <class Visit>
  __device__ void each_unit(const Visit& visit) const {
    const int thread = thread_index();
#pragma unroll
    for (int i = 0; i < kMaxUnits; ++i) {
      const int unit = thread + i * kConsumers;
      if (unit < units_) visit(i, unit);
    }
  }

  /// What RMSNorm multiplies the row by.
  template <class Format>
  __device__ float norm_scale(const Shared<Format>& shared, float eps) const {
    float squares = 0;
    each_unit([&](int i, int) { squares = add_squares(squares, x_[i]); });
    return rsqrtf(fmaf(row_sum(shared.sums + kConsumerWarps, squares), inverse_hidden_, eps));
  }
  __device__ float4 normalized(int i, float scale) const {
    return {__fmul_rn(__fmul_rn(x_[i].x, scale), 1.0f + next_norm_[i].x),
            __fmul_rn(__fmul_rn(x_[i].y, scale), 1.0f + next_norm_[i].y),
            __fmul_rn(__fmul_rn(x_[i].z, scale), 1.0f + next_norm_[i].z),
            __fmul_rn(__fmul_rn(x_[i].w, scale), 1.0f + next_norm_[i].w)};
  }

  /// Calls use(normalised units: as many as a consumer has at most).
  template <class Format, class Use>
  __device__ void with_normalized(const Shared<Format>& shared, float eps, const Use& use) const {
    const float scale = norm_scale(shared, eps);
    const auto with_units = [&](auto units) {
      constexpr int kUnits = decltype(units)::value;
      float4 x[kUnits];
#pragma unroll
      for (int i = 0; i < kUnits; ++i) x[i] = normalized(i, scale);
      use(x);
    };
    constexpr int kFewUnits = 3;
    if (units_ <= kFewUnits * kConsumers) {
      with_units(std::integral_constant<int, kFewUnits>{});
    } else {
      with_units(std::integral_constant<int, kMaxUnits>{});
    }
  }
  template <class Put, class Unit>
  __device__ void put_unit(const Put& put, int i, const Unit& of_unit, const DigitGroup& group) const {
    const int unit = thread_index() + i * kConsumers;
    if (unit < units_) put(unit, of_unit, group);
  }

  /// What is fetched is new altogether: so the compiler sees that it need not be kept in between.
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kMaxUnits; ++i) x_[i] = added_norm_[i] = next_norm_[i] = {};
  }

  __device__ static float add_squares(float sum, const float4& v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
  }

  /// Adds up what the consumers have: the lanes of each warp, then the warps in order.
  /// @param sums  [kConsumerWarps] in shared memory, which nobody reads any more
  __device__ static float row_sum(float* sums, float own) {
    const float of_warp = warp_sum(own);
    if (lane_index() == 0) sums[warp_index()] = of_warp;
    consumer_barrier();
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < kConsumerWarps; ++warp) total += sums[warp];
    return total;
  }

  int units_;
  float inverse_hidden_;
  float4 x_[kMaxUnits], added_norm_[kMaxUnits], next_norm_[kMaxUnits];
};

}  // namespace gemma
