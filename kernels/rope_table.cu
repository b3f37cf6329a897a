// The table of cosines and sines that rotary embeddings are made from; written once, when a model is loaded.

#include "launch.cuh"
#include "rope_table.cuh"

namespace gemma {
namespace {

__global__ void rope_table_kernel(const double* frequency, int positions, int half_dim, float2* table) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<long long>(positions) * half_dim) return;
  double sine, cosine;
  sincos(static_cast<double>(index / half_dim) * frequency[index % half_dim], &sine, &cosine);
  table[index] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
}

}  // namespace

void launch_rope_table(const double* frequency, int positions, int half_dim, float2* table, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const long long entries = static_cast<long long>(positions) * half_dim;
  launch_kernel(rope_table_kernel, static_cast<unsigned>((entries + kThreads - 1) / kThreads), kThreads, stream,
                frequency, positions, half_dim, table);
}

}  // namespace gemma
