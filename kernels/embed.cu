// x = E[token] * scale.
//
// Bytes: rows * hidden * (2 + 4); of a quantised embedding rows * hidden * (1.06 or 0.58 + 4), read in pieces of 16
// bytes that belong to one row.

#include "embed.cuh"
#include "launch.cuh"
#include "packed_weights.cuh"
#include "ptx.cuh"

namespace gemma {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(const int* token, const __nv_bfloat16* embed, float scale, int hidden, float* x) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const uint2* in = reinterpret_cast<const uint2*>(embed + static_cast<std::size_t>(token[row]) * hidden);
  float4* out = reinterpret_cast<float4*>(x + row * hidden);
  for (int unit = static_cast<int>(threadIdx.x); unit < hidden / 4; unit += kThreads) {
    const uint2 four = __ldg(in + unit);
    out[unit] = {low_half(four.x) * scale, high_half(four.x) * scale, low_half(four.y) * scale,
                 high_half(four.y) * scale};
  }
}

template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    embed_packed_kernel(const int* token, const std::byte* units, float scale, int hidden, float* x) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const std::size_t row = blockIdx.x;
  const int tile = token[row] / kPieceRows;
  const int row_of_tile = token[row] % kPieceRows;
  const std::byte* first_unit =
      units + static_cast<std::size_t>(tile) * units_in_tile(hidden) * UnitLayout<kType>::kBytes;
  for (int column = static_cast<int>(threadIdx.x); column < hidden; column += kThreads) {
    const std::byte* unit = first_unit + column / kUnitColumns * UnitLayout<kType>::kBytes;
    x[row * hidden + column] = packed_weight<kType>(unit, row_of_tile, column % kUnitColumns) * scale;
  }
}

}  // namespace

void launch_embed(const int* token, const void* embed, WeightType type, float scale, int rows, int hidden, float* x,
                  cudaStream_t stream) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows));
  if (type == WeightType::kBf16) {
    launch_early(embed_kernel, grid, kThreads, 0, stream, token, static_cast<const __nv_bfloat16*>(embed), scale,
                 hidden, x);
    return;
  }
  const auto kernel =
      type == WeightType::kQ8 ? embed_packed_kernel<WeightType::kQ8> : embed_packed_kernel<WeightType::kQ4>;
  launch_early(kernel, grid, kThreads, 0, stream, token, static_cast<const std::byte*>(embed), scale, hidden, x);
}

}  // namespace gemma
