#include "device/cuda/weight_loader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "device/cuda/handles.h"
#include "model/matrix_parts.h"
#include "pack_weights.cuh"
#include "packed_weights.cuh"

namespace gemma::cuda {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{8} << 20;  // copied at once
constexpr std::size_t kAlignment = 256;                    // of a tensor in a buffer
constexpr int kBuffersPerThread = 2;                       // one is filled while the other is on its way
constexpr int kMaxThreads = 8;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

MatrixShape shape_of(const Matrix& matrix, bool is_gate_up) { return {matrix.rows, matrix.columns, is_gate_up}; }

/// Some tiles of a matrix are a matrix again, of rows [first_row, first_row + rows), or of gate_up of as many of the
/// gate and of up.
struct TileRows {
  int first_row;
  int rows;
  int parts;       // 2: gate and up
  int part_begin;  // of the second, in rows from that of the first

  explicit TileRows(const LoadPiece& piece) {
    const MatrixShape shape = shape_of(piece.matrix, piece.is_gate_up);
    parts = piece.is_gate_up ? 2 : 1;
    part_begin = shape.outputs / parts;
    first_row = piece.first_tile * shape.rows_in_tile();
    rows = std::min(piece.tiles * shape.rows_in_tile(), part_begin - first_row);
  }

  int all_rows() const { return parts * rows; }
};

/// Bytes of a buffer that holds all tensors of such rows.
std::size_t buffer_bytes(WeightType type, int rows, int columns) {
  std::size_t bytes = 0;
  for (const MatrixPart& part : parts_of(type, rows, columns)) bytes += aligned(part.bytes());
  return bytes;
}

std::size_t buffer_bytes(const LoadPiece& piece) {
  if (!piece.bytes.empty()) return piece.bytes.size();
  return buffer_bytes(piece.matrix.type, TileRows(piece).all_rows(), piece.matrix.columns);
}

std::size_t largest_buffer(std::span<const LoadPiece> pieces, bool only_quantised) {
  std::size_t largest = 0;
  for (const LoadPiece& piece : pieces) {
    if (piece.bytes.empty() || !only_quantised) largest = std::max(largest, buffer_bytes(piece));
  }
  return largest;
}

int thread_count(std::size_t pieces) {
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::min({cores, std::size_t{kMaxThreads}, pieces}));
}

/// Gathers the rows of a piece in a buffer, tensor by tensor.
/// @param on_gpu  where the buffer will be copied to
/// @return the matrix that lies there then
Matrix gather(const LoadPiece& piece, std::byte* buffer, const std::byte* on_gpu) {
  const TileRows tile_rows(piece);
  const std::vector<std::span<const std::byte>> tensors = bytes_of_parts(piece.matrix);
  std::vector<const std::byte*> starts;
  std::size_t offset = 0;
  for (const MatrixPart& part : parts_of(piece.matrix.type, tile_rows.all_rows(), piece.matrix.columns)) {
    const auto row_bytes = static_cast<std::size_t>(part.row_bytes());
    const std::size_t run = row_bytes * static_cast<std::size_t>(tile_rows.rows);
    for (int i = 0; i < tile_rows.parts; ++i) {
      const auto first = static_cast<std::size_t>(tile_rows.first_row + i * tile_rows.part_begin);
      std::memcpy(buffer + offset + static_cast<std::size_t>(i) * run, &tensors[starts.size()][first * row_bytes], run);
    }
    starts.push_back(on_gpu + offset);
    offset += aligned(part.bytes());
  }
  return make_matrix(piece.matrix.type, tile_rows.all_rows(), piece.matrix.columns, starts);
}

/// One thread's buffers and stream.
class Loader {
 public:
  Loader(std::size_t buffer_bytes, std::size_t staging_bytes) : on_gpu_(staging_bytes) {
    for (Stage& stage : stages_) stage.buffer = PinnedBuffer<std::byte>(buffer_bytes);
  }

  void load(const LoadPiece& piece, std::byte* to) {
    Stage& stage = stages_[turn_++ % kBuffersPerThread];
    stage.is_empty.synchronize();
    const bool is_packed = piece.bytes.empty();
    const std::size_t bytes = buffer_bytes(piece);
    Matrix matrix;
    if (is_packed) {
      matrix = gather(piece, stage.buffer.data(), on_gpu_.data());
    } else {
      std::memcpy(stage.buffer.data(), piece.bytes.data(), bytes);
    }
    // In the stream, the next copy waits until these tiles are packed.
    check_cuda(cudaMemcpyAsync(is_packed ? on_gpu_.data() : to + piece.offset, stage.buffer.data(), bytes,
                               cudaMemcpyHostToDevice, stream_));
    stage.is_empty.record(stream_);
    if (is_packed) launch_pack_weights(matrix, piece.is_gate_up, to + piece.offset, stream_);
  }

  void finish() const { stream_.synchronize(); }

 private:
  struct Stage {
    PinnedBuffer<std::byte> buffer;
    Event is_empty;
  };
  Stream stream_;
  Stage stages_[kBuffersPerThread];
  Buffer<std::byte> on_gpu_;
  int turn_ = 0;
};

}  // namespace

void add_pieces(std::span<const float> norm, std::size_t offset, std::vector<LoadPiece>& pieces) {
  pieces.push_back({.bytes = std::as_bytes(norm), .offset = offset});
}

void add_pieces(const Matrix& matrix, bool is_gate_up, std::size_t offset, std::vector<LoadPiece>& pieces) {
  if (matrix.type == WeightType::kBf16) {
    const std::span bytes(reinterpret_cast<const std::byte*>(matrix.data), static_cast<std::size_t>(matrix.bytes()));
    for (std::size_t done = 0; done < bytes.size(); done += kBlockBytes)
      pieces.push_back(
          {.bytes = bytes.subspan(done, std::min(kBlockBytes, bytes.size() - done)), .offset = offset + done});
    return;
  }
  const int tiles = shape_of(matrix, is_gate_up).tiles();
  const std::size_t tile_bytes = buffer_bytes(matrix.type, kPieceRows, matrix.columns);
  const int at_once = static_cast<int>(std::clamp<std::size_t>(kBlockBytes / tile_bytes, 1, 1u << 20));
  const std::size_t packed = packed_bytes(matrix.type, kPieceRows, matrix.columns);
  for (int tile = 0; tile < tiles; tile += at_once) {
    pieces.push_back({.matrix = matrix,
                      .is_gate_up = is_gate_up,
                      .first_tile = tile,
                      .tiles = std::min(at_once, tiles - tile),
                      .offset = offset + static_cast<std::size_t>(tile) * packed});
  }
}

std::size_t loaded_bytes(const Matrix& matrix) {
  if (matrix.type == WeightType::kBf16) return static_cast<std::size_t>(matrix.bytes());
  return packed_bytes(matrix.type, matrix.rows, matrix.columns);
}

std::size_t staging_bytes(std::span<const LoadPiece> pieces) {
  return static_cast<std::size_t>(thread_count(pieces.size())) * largest_buffer(pieces, /*only_quantised=*/true);
}

void load_pieces(std::span<const LoadPiece> pieces, std::byte* to) {
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  const std::size_t buffer = largest_buffer(pieces, /*only_quantised=*/false);
  const std::size_t staging = largest_buffer(pieces, /*only_quantised=*/true);
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;

  const auto work = [&] {
    try {
      check_cuda(cudaSetDevice(device));
      Loader loader(buffer, staging);
      for (std::size_t i = next++; i < pieces.size(); i = next++) loader.load(pieces[i], to);
      loader.finish();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = pieces.size();
    }
  };
  {
    std::vector<std::jthread> workers;
    for (int i = 0; i < thread_count(pieces.size()); ++i) workers.emplace_back(work);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace gemma::cuda
