#include "device/cuda/device_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <span>
#include <thread>

#include "device/cuda/tensor_map.h"

namespace gemma::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kEndPadding = std::size_t{1} << 20;  // tensor maps and logits may read a few rows behind a matrix
constexpr std::size_t kBlockBytes = std::size_t{8} << 20;  // copied at once
constexpr int kBuffersPerThread = 2;                       // one is filled while the other is on its way
constexpr int kMaxThreads = 8;

/// A run of bytes to be copied to an offset of the GPU's memory.
struct Piece {
  const std::byte* from;
  std::size_t offset;
  std::size_t bytes;
};

/// Where each weight goes. Visits the weights in the order of the forward pass, which is that of the file.
class Plan {
 public:
  std::size_t add(const Matrix& matrix) { return add(matrix.data, matrix.bytes()); }
  std::size_t add(std::span<const float> norm) { return add(norm.data(), norm.size_bytes()); }

  const std::vector<Piece>& pieces() const { return pieces_; }
  std::size_t bytes() const { return end_ + kEndPadding; }

 private:
  std::size_t add(const void* data, std::size_t bytes) {
    const std::size_t offset = end_;
    for (std::size_t done = 0; done < bytes; done += kBlockBytes) {
      pieces_.push_back(
          {static_cast<const std::byte*>(data) + done, offset + done, std::min(kBlockBytes, bytes - done)});
    }
    end_ = (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }

  std::vector<Piece> pieces_;
  std::size_t end_ = 0;
};

void copy_pieces(std::span<const Piece> pieces, std::byte* to) {
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;

  const auto work = [&] {
    try {
      check_cuda(cudaSetDevice(device));
      const Stream stream;
      struct Staging {
        PinnedBuffer<std::byte> buffer{kBlockBytes};
        Event is_empty;
      };
      Staging staging[kBuffersPerThread];
      int turn = 0;
      for (std::size_t i = next++; i < pieces.size(); i = next++) {
        Staging& stage = staging[turn++ % kBuffersPerThread];
        stage.is_empty.synchronize();
        std::memcpy(stage.buffer.data(), pieces[i].from, pieces[i].bytes);
        check_cuda(cudaMemcpyAsync(to + pieces[i].offset, stage.buffer.data(), pieces[i].bytes, cudaMemcpyHostToDevice,
                                   stream));
        stage.is_empty.record(stream);
      }
      stream.synchronize();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = pieces.size();
    }
  };
  {
    const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t threads = std::min({cores, std::size_t{kMaxThreads}, pieces.size()});
    std::vector<std::jthread> workers;
    for (std::size_t i = 0; i < threads; ++i) workers.emplace_back(work);
  }
  if (failure) std::rethrow_exception(failure);
}

struct LayerOffsets {
  std::size_t attention_norm, qkv, attention_out, attention_post_norm, mlp_norm, gate_up, down, mlp_post_norm;
};

struct Offsets {
  std::size_t embed, head, final_norm;
  std::vector<LayerOffsets> layers;
};

Offsets lay_out(const Weights& weights, Plan& plan) {
  Offsets offsets{};
  offsets.embed = plan.add(weights.embed);
  for (const LayerWeights& layer : weights.layers) {
    LayerOffsets at{};
    at.attention_norm = plan.add(layer.attention_norm);
    at.qkv = plan.add(layer.qkv);
    at.attention_out = plan.add(layer.attention_out);
    at.attention_post_norm = plan.add(layer.attention_post_norm);
    at.mlp_norm = plan.add(layer.mlp_norm);
    at.gate_up = plan.add(layer.gate_up);
    at.down = plan.add(layer.down);
    at.mlp_post_norm = plan.add(layer.mlp_post_norm);
    offsets.layers.push_back(at);
  }
  offsets.final_norm = plan.add(weights.final_norm);
  offsets.head = weights.head.is_same_as(weights.embed) ? offsets.embed : plan.add(weights.head);
  return offsets;
}

}  // namespace

std::size_t DeviceWeights::bytes(const Model& model) {
  Plan plan;
  lay_out(model.weights, plan);
  return plan.bytes();
}

DeviceWeights::DeviceWeights(const Model& model) {
  Plan plan;
  const Offsets offsets = lay_out(model.weights, plan);
  memory_ = Buffer<std::byte>(plan.bytes());
  copy_pieces(plan.pieces(), memory_.data());

  const auto streamed = [&](std::size_t offset, const Matrix& matrix, bool is_gate_up = false) {
    return StreamedMatrix{
        {.outputs = matrix.rows, .columns = matrix.columns, .is_gate_up = is_gate_up},
        {.weights = reinterpret_cast<const __nv_bfloat16*>(memory_.data() + offset), .tensor_map = nullptr}};
  };
  const auto norm = [&](std::size_t offset) { return reinterpret_cast<const float*>(memory_.data() + offset); };
  embed_ = reinterpret_cast<const __nv_bfloat16*>(memory_.data() + offsets.embed);
  head_ = streamed(offsets.head, model.weights.head);
  final_norm_ = norm(offsets.final_norm);
  int of_kind[2] = {0, 0};
  for (std::size_t i = 0; i < offsets.layers.size(); ++i) {
    const LayerOffsets& at = offsets.layers[i];
    const LayerWeights& weights = model.weights.layers[i];
    const bool is_local = model.config.layers[i] == LayerKind::kLocal;
    DecodeLayer layer{};
    layer.qkv = streamed(at.qkv, weights.qkv);
    layer.attention_out = streamed(at.attention_out, weights.attention_out);
    layer.gate_up = streamed(at.gate_up, weights.gate_up, /*is_gate_up=*/true);
    layer.down = streamed(at.down, weights.down);
    layer.attention_norm = norm(at.attention_norm);
    layer.attention_post_norm = norm(at.attention_post_norm);
    layer.mlp_norm = norm(at.mlp_norm);
    layer.mlp_post_norm = norm(at.mlp_post_norm);
    layer.is_local = is_local ? 1 : 0;
    layer.index_in_kind = of_kind[is_local]++;
    layers_.push_back(layer);
  }
  make_tensor_maps();
}

void DeviceWeights::make_tensor_maps() {
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major < 9) return;
  std::vector<StreamedMatrix*> matrices{&head_};
  for (DecodeLayer& layer : layers_)
    matrices.insert(matrices.end(), {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down});
  tensor_maps_ = Buffer<CUtensorMap>(matrices.size());
  std::vector<CUtensorMap> maps;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    maps.push_back(make_tensor_map(*matrices[i]));
    matrices[i]->tensor_map = tensor_maps_.data() + i;
  }
  check_cuda(cudaMemcpy(tensor_maps_.data(), maps.data(), tensor_maps_.bytes(), cudaMemcpyHostToDevice));
}

}  // namespace gemma::cuda
