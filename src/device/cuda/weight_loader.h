#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model/model.h"

namespace gemma::cuda {

/// What a thread copies at once: a run of bytes, which stay as they are, or some tiles of a quantised matrix, which the
/// GPU packs (kernels/packed_weights.cuh).
struct LoadPiece {
  std::span<const std::byte> bytes;  ///< empty: tiles of `matrix`
  Matrix matrix;
  bool is_gate_up = false;
  int first_tile = 0;
  int tiles = 0;
  std::size_t offset = 0;  ///< of the GPU's memory, where the result begins
};

/// A whole matrix, or a norm, in pieces of about 8 MiB of the host's bytes.
/// @param offset  where it goes
void add_pieces(std::span<const float> norm, std::size_t offset, std::vector<LoadPiece>& pieces);
void add_pieces(const Matrix& matrix, bool is_gate_up, std::size_t offset, std::vector<LoadPiece>& pieces);

/// Bytes that a matrix takes in the GPU's memory.
std::size_t loaded_bytes(const Matrix& matrix);

/// Bytes of GPU memory that load_pieces needs beside `to`, while it runs.
std::size_t staging_bytes(std::span<const LoadPiece> pieces);

/// Copies all pieces to the GPU, by several threads at once.
/// @throws Error if a copy fails or memory is short.
void load_pieces(std::span<const LoadPiece> pieces, std::byte* to);

}  // namespace gemma::cuda
