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

/// Whether the kernels of up to kFewRows rows can take so many.
bool few_fit(const DecodeModel& model, int rows) {
  // Each of several rows is normalised by a block of its own.
  if (rows > std::min(kFewRows, multiprocessors())) return false;
  return with_format(model.layer_type, [&](auto format) {
    using Format = decltype(format);
    return model.kv_type == KvType::kQ8 ? few_rows_fit<KvType::kQ8, Format>(model, rows)
                                        : few_rows_fit<KvType::kBf16, Format>(model, rows);
  });
}

/// Whether a step of a single row sends messages.
bool has_messages(const DecodeModel& model) {
  return few_fit(model, 1) && with_format(model.layer_type, [](auto format) {
           return sends_messages<decltype(format)>(architecture_of_code(), 1);
         });
}

/// What to do about shared memory that is too short.
std::string advice() {
  const int capability =
      10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
  if (is_short_of_memory(10 * capability) && !is_short_of_memory(architecture_of_code()))
    return "for kernels compiled for other GPUs; build with -DCMAKE_CUDA_ARCHITECTURES=" + std::to_string(capability);
  return "for this model; use --device cpu";
}

/// Deals out messages, each array from a multiple of 16 bytes on.
/// @return words dealt out
std::size_t deal_out(const DecodeModel& model, unsigned long long* memory, DecodeMessages& messages) {
  std::size_t used = 0;
  const auto take = [&]<class Word>(Word*& words, std::size_t count) {
    words = memory == nullptr ? nullptr : reinterpret_cast<Word*>(memory + used);
    used += (count * sizeof(Word) + 15) / 16 * 2;
  };
  const auto query_size = static_cast<std::size_t>(model.heads * model.head_dim);
  const auto blocks = static_cast<std::size_t>(model.max_blocks);
  take(messages.step, 1);
  take(messages.arrivals, 1);
  take(messages.carries, static_cast<std::size_t>(multiprocessors() * kPieceRows));
  take(messages.qkv, query_size + static_cast<std::size_t>(2 * model.kv_heads * model.head_dim));
  take(messages.partials, query_size * blocks);
  take(messages.partial_sums, static_cast<std::size_t>(2 * model.heads) * blocks);
  take(messages.attended, query_size);
  take(messages.projected, static_cast<std::size_t>(model.hidden));
  take(messages.activated, static_cast<std::size_t>(model.intermediate));
  return used;
}

}  // namespace

std::size_t decode_messages_size(const DecodeModel& model) {
  DecodeMessages none{};
  return has_messages(model) ? deal_out(model, nullptr, none) : 0;
}

void lay_out_messages(DecodeModel& model, unsigned long long* memory) {
  if (has_messages(model)) deal_out(model, memory, model.messages);
}

std::size_t decode_exchange_size() {
  return kFirstCarry + static_cast<std::size_t>(multiprocessors()) * kFewRows * kPieceRows;
}

int max_decode_rows(const DecodeModel& model) {
  if (model.hidden > ResidualRow::kMaxHidden) {
    throw Error("the CUDA device takes hidden sizes of up to " + std::to_string(ResidualRow::kMaxHidden) + ", not " +
                std::to_string(model.hidden) + "; use --device cpu");
  }
  int rows = kFewRows;
  while (rows > 0 && !few_fit(model, rows)) --rows;
  rows = std::max(rows, most_rows_of_decode_many(model));
  if (rows > 0) return rows;
  throw Error("this GPU's blocks have " + std::to_string(shared_memory_of_block() / 1024) +
              " KB of shared memory, too little " + advice());
}

void launch_decode(const DecodeModel& model, int rows, cudaStream_t stream) {
  const bool is_few = few_fit(model, rows);
  const bool sends = rows == 1 && has_messages(model);
  const int carries = is_few ? multiprocessors() * (rows == 1 ? 1 : kFewRows) * kPieceRows : 0;
  if (!sends)
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
