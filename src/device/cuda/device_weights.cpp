#include "device/cuda/device_weights.h"

#include <span>

#include "device/cuda/tensor_map.h"
#include "device/cuda/weight_loader.h"

namespace gemma::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kEndPadding = std::size_t{1} << 20;  // tensor maps and logits may read a few rows behind a matrix

/// Where each weight goes. Visits the weights in the order of the forward pass, which is that of the file.
class Plan {
 public:
  std::size_t add(const Matrix& matrix, bool is_gate_up = false) {
    add_pieces(matrix, is_gate_up, end_, pieces_);
    return take(loaded_bytes(matrix));
  }
  std::size_t add(std::span<const float> norm) {
    add_pieces(norm, end_, pieces_);
    return take(norm.size_bytes());
  }

  const std::vector<LoadPiece>& pieces() const { return pieces_; }
  std::size_t bytes() const { return end_ + kEndPadding; }

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t offset = end_;
    end_ = (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }

  std::vector<LoadPiece> pieces_;
  std::size_t end_ = 0;
};

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
    at.gate_up = plan.add(layer.gate_up, /*is_gate_up=*/true);
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

std::size_t DeviceWeights::staging_bytes(const Model& model) {
  Plan plan;
  lay_out(model.weights, plan);
  return cuda::staging_bytes(plan.pieces());
}

DeviceWeights::DeviceWeights(const Model& model) : types_(model.weights.types()) {
  Plan plan;
  const Offsets offsets = lay_out(model.weights, plan);
  memory_ = Buffer<std::byte>(plan.bytes());
  load_pieces(plan.pieces(), memory_.data());

  const auto streamed = [&](std::size_t offset, const Matrix& matrix, bool is_gate_up = false) {
    return StreamedMatrix{{.outputs = matrix.rows, .columns = matrix.columns, .is_gate_up = is_gate_up},
                          {.weights = memory_.data() + offset, .tensor_map = nullptr}};
  };
  const auto norm = [&](std::size_t offset) { return reinterpret_cast<const float*>(memory_.data() + offset); };
  embed_ = memory_.data() + offsets.embed;
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
  std::vector<StreamedMatrix*> matrices;
  if (types_.embed == WeightType::kBf16) matrices.push_back(&head_);
  if (types_.layers == WeightType::kBf16) {
    for (DecodeLayer& layer : layers_)
      matrices.insert(matrices.end(), {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down});
  }
  tensor_maps_ = Buffer<CUtensorMap>(matrices.size());
  std::vector<CUtensorMap> maps;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    maps.push_back(make_tensor_map(*matrices[i]));
    matrices[i]->tensor_map = tensor_maps_.data() + i;
  }
  if (matrices.empty()) return;
  upload(tensor_maps_, 0, std::span<const CUtensorMap>(maps));
}

}  // namespace gemma::cuda
