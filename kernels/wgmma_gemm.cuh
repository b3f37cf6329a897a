#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <span>

#include "rope.cuh"

namespace gemma {

// Matrix products of prompt rows on Hopper's tensor cores, ended by the function that their outputs go through. A row's
// result depends neither on the other rows nor on the tile that it is in: every output is one sum in float32, along
// columns, 16 at a time.

/// Whether this program has Hopper's code and the present GPU is one. Not while a stream is being captured.
/// @throws Error if the GPU cannot be asked.
bool has_wgmma();

/// out = in x weights^T.
struct PlainProduct {
  float* out;   ///< [rows, outputs], rows `pitch` elements apart
  int outputs;  ///< a multiple of 4
  int pitch;    ///< a multiple of 4
};

/// out = gelu(in x gate^T) * (in x up^T).
struct GegluProduct {
  __nv_bfloat16* out;  ///< [rows, intermediate], rows `pitch` elements apart
  int intermediate;    ///< a multiple of 8; weights are [2 * intermediate, columns]: all of gate, then all of up
  int pitch;           ///< a multiple of 8
};

/// Queries, keys and values, turned. Weights are [output.width(), columns]; head_dim is a multiple of 128.
struct RopeProduct {
  RopeOutput output;
};

/// The tiles that a product of this kind can be computed in: outputs, of 128 rows, that a block computes at a time.
template <class Product>
std::span<const int> wgmma_tiles();

/// The tile that is expected to take the least time.
template <class Product>
int choose_wgmma_tile(const Product& product, int rows);

/// Multiplies rows by weights. Only where has_wgmma(). Can be captured in a graph.
/// @param in       [rows, columns]; columns is a multiple of 8; in, weights and out are aligned to 16 bytes
/// @param weights  [outputs, columns], as the product's kind says
/// @throws Error if a launch fails.
template <class Product>
void launch_wgmma_product(const Product& product, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows,
                          int columns, int tile, cudaStream_t stream);

}  // namespace gemma
