// Which kernels a decode step takes.

#include <algorithm>
#include <string>

#include "cuda_error.h"
#include "decode.cuh"
#include "decode_kernel.cuh"
#include "decode_launch.cuh"
#include "gemma/error.h"

namespace gemma {
namespace {

/// Calls visit(StreamFormat) with that of a type of weights.
template <class Visit>
auto with_format(WeightType layer_type, const Visit& visit) {
  switch (layer_type) {
    case WeightType::kQ8:
      return visit(StreamFormat<WeightType::kQ8>{});
    case WeightType::kQ4:
      return visit(StreamFormat<WeightType::kQ4>{});
    case WeightType::kBf16:
      break;
  }
  return visit(StreamFormat<WeightType::kBf16>{});
}

bool fits(WeightType layer_type, int hidden, int rows) {
  return with_format(layer_type, [&](auto format) { return few_rows_fit<decltype(format)>(hidden, rows); });
}

}  // namespace

std::size_t decode_exchange_size() {
  return kFirstCarry + static_cast<std::size_t>(multiprocessors()) * kFewRows * kPieceRows;
}

void check_decode(int hidden, WeightType layer_type) {
  if (hidden > ResidualRow::kMaxHidden) {
    throw Error("the CUDA device takes hidden sizes of up to " + std::to_string(ResidualRow::kMaxHidden) + ", not " +
                std::to_string(hidden) + "; use --device cpu");
  }
  if (!fits(layer_type, hidden, 1)) {
    throw Error("this GPU's blocks have " + std::to_string(shared_memory_of_block() / 1024) +
                " KB of shared memory, too little for a hidden size of " + std::to_string(hidden));
  }
}

void launch_decode(const DecodeModel& model, int rows, cudaStream_t stream) {
  // Each of several rows is normalised by a block of its own.
  const bool is_few = rows <= std::min(kFewRows, multiprocessors()) && fits(model.layer_type, model.hidden, rows);
  const int carries = is_few ? multiprocessors() * (rows == 1 ? 1 : kFewRows) * kPieceRows : 0;
  check_cuda(cudaMemsetAsync(model.exchange, 0, static_cast<std::size_t>(kFirstCarry + carries) * 8, stream));
  if (!is_few) {
    launch_decode_many(model, rows, stream);
  } else {
    with_format(model.layer_type, [&](auto format) {
      constexpr WeightType kLayers = decltype(format)::kLayers;
      if (model.kv_type == KvType::kQ8) {
        launch_decode_few<kLayers, KvType::kQ8>(model, rows, stream);
      } else {
        launch_decode_few<kLayers, KvType::kBf16>(model, rows, stream);
      }
    });
  }
}

}  // namespace gemma
