// Quantised weights on their way into the prompt's matrix products: from the units of packed_weights.cuh to rows of
// bf16. A warp unpacks one unit, as it would for the tensor cores; four lanes then swap words, so that each has eight
// neighbouring columns and they write 64 bytes of a row together.
//
// Bytes: 1.06 (q8) or 0.58 (q4) read and 2 written for a weight; arithmetic and exchange take about a seventh of the
// time that memory takes for them.

#include "launch.cuh"
#include "packed_weights.cuh"
#include "ptx.cuh"
#include "unpack_weights.cuh"

namespace gemma {
namespace {

constexpr int kWarps = 8;  // of a block

template <WeightType kType>
__global__ void __launch_bounds__(32 * kWarps)
    unpack_kernel(const std::byte* units, MatrixShape shape, int unit_count, __nv_bfloat16* out) {
  using Layout = UnitLayout<kType>;
  constexpr int kLoads = kUnitSteps / Layout::kStepsInLoad;
  let_next_kernel_start();
  const int index = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
  if (index >= unit_count) {
    wait_for_previous_kernel();
    return;
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::byte* unit = units + static_cast<std::size_t>(index) * Layout::kBytes;

  // Weights never change: they are fetched while the kernel before may still read what `out` held until now.
  uint4 codes[kLoads];
  float2 scales[kUnitSteps];
#pragma unroll
  for (int load = 0; load < kLoads; ++load) codes[load] = load_codes<kType>(unit, load);
#pragma unroll
  for (int step = 0; step < kUnitSteps; ++step) scales[step] = scale_and_minimum<kType>(unit, lane / 4, step);
  wait_for_previous_kernel();

  const int units_of_tile = units_in_tile(shape.columns);
  const int output = output_of(shape, index / units_of_tile, lane / 4);
  const bool is_there = !shape.is_gate_up || output < shape.outputs;
  const int first_column = index % units_of_tile * kUnitColumns + 8 * (lane % 4);
  __nv_bfloat16* row = out + static_cast<std::size_t>(output) * shape.columns;
#pragma unroll
  for (int step = 0; step < kUnitSteps; ++step) {
    std::uint32_t words[4];
    unpack_step<kType>(words, codes[step / Layout::kStepsInLoad], step % Layout::kStepsInLoad);
    const auto weight = [&](float code) { return scaled_code<kType>(scales[step], code); };
#pragma unroll
    for (std::uint32_t& word : words) word = pack_bf16(weight(low_half(word)), weight(high_half(word)));
    const uint4 eight = transpose_words(words);
    const int column = first_column + step * kGroupColumns;
    if (is_there && column < shape.columns) *reinterpret_cast<uint4*>(row + column) = eight;
  }
}

template <WeightType kType>
void launch(const std::byte* units, const MatrixShape& shape, __nv_bfloat16* out, cudaStream_t stream) {
  const int count = shape.tiles() * units_in_tile(shape.columns);
  const auto blocks = static_cast<unsigned>((count + kWarps - 1) / kWarps);
  launch_early(unpack_kernel<kType>, dim3(blocks), 32 * kWarps, 0, stream, units, shape, count, out);
}

}  // namespace

void launch_unpack_weights(WeightType type, const std::byte* units, const MatrixShape& shape, __nv_bfloat16* out,
                           cudaStream_t stream) {
  if (shape.outputs == 0) return;
  const auto launch_of_type = type == WeightType::kQ8 ? launch<WeightType::kQ8> : launch<WeightType::kQ4>;
  launch_of_type(units, shape, out, stream);
}

}  // namespace gemma
