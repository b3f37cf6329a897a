#include "gemm.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "activation.cuh"
#include "gemma/error.h"

namespace gemma {
namespace {

constexpr int kScratchRows = 1024;  // that gate and up are held of at once

[[noreturn]] void fail(cublasStatus_t status, const std::string& what) {
  throw Error("cuBLASLt cannot " + what + ": it reports " + cublasLtGetStatusName(status));
}

void check_cublas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(status, what);
}

std::string in_words(int outputs, int columns) {
  return "multiply by weights of shape [" + std::to_string(outputs) + ", " + std::to_string(columns) + "]";
}

template <class Value>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check_cublas(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value), "describe a matrix product");
}

template <class Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), "take a preference");
}

/// cuBLASLt's matrices are column-major: our [rows, columns] is its columns x rows.
/// @param pitch  elements from one row to the next
cublasLtMatrixLayoutOpaque_t layout(cudaDataType_t type, int rows, int columns, int pitch) {
  cublasLtMatrixLayoutOpaque_t made;
  check_cublas(cublasLtMatrixLayoutInit(&made, type, static_cast<std::uint64_t>(columns),
                                        static_cast<std::uint64_t>(rows), pitch),
               "describe a matrix");
  return made;
}

/// Whether one block of threads sums over all columns.
bool sums_in_one_piece(const cublasLtMatmulHeuristicResult_t& result) {
  std::uint32_t pieces = 0, reduction = 0;
  std::size_t written = 0;
  check_cublas(cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &pieces,
                                                    sizeof pieces, &written),
               "describe an algorithm");
  check_cublas(cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                    sizeof reduction, &written),
               "describe an algorithm");
  // Whatever else would combine partial sums needs memory for them.
  return pieces <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE && result.workspaceSize == 0;
}

}  // namespace

Gemm::Gemm(int typical_rows, bool uses_wgmma) : typical_rows_(typical_rows), uses_wgmma_(uses_wgmma) {
  if (!uses_wgmma_) start();
}

void Gemm::start() {
  cublasLtHandle_t handle = nullptr;
  check_cublas(cublasLtCreate(&handle), "start");
  handle_.reset(handle);
}

const Gemm::Plan& Gemm::plan(int outputs, int columns, int pitch) {
  const Shape shape{outputs, columns, pitch};
  if (const auto known = plans_.find(shape); known != plans_.end()) return known->second;
  if (!handle_) start();

  Plan made;
  check_cublas(cublasLtMatmulDescInit(&made.product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe a matrix product");
  set(&made.product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);

  cublasLtMatmulPreferenceOpaque_t preference;
  check_cublas(cublasLtMatmulPreferenceInit(&preference), "take a preference");
  set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{0});
  set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  for (const auto alignment :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(&preference, alignment, std::uint32_t{16});
  }

  auto weights = layout(CUDA_R_16BF, outputs, columns, columns);
  auto in = layout(CUDA_R_16BF, typical_rows_, columns, columns);
  auto out = layout(CUDA_R_32F, typical_rows_, outputs, pitch);
  std::array<cublasLtMatmulHeuristicResult_t, 16> results;
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_.get(), &made.product, &weights, &in, &out, &out, &preference,
                                     static_cast<int>(results.size()), results.data(), &found);
  if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
    fail(status, in_words(outputs, columns));
  for (int i = 0; i < found; ++i) {
    const auto& result = results[static_cast<std::size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || !sums_in_one_piece(result)) continue;
    made.algorithm = result.algo;
    return plans_.emplace(shape, made).first->second;
  }
  throw Error("cuBLASLt cannot " + in_words(outputs, columns) + ": it knows no way on this GPU to sum in one piece");
}

void Gemm::multiply(float* out, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows, int outputs,
                    int columns, cudaStream_t stream, int pitch) {
  if (rows == 0) return;
  if (pitch == 0) pitch = outputs;
  if (uses_wgmma_ && outputs % 4 == 0) {
    const PlainProduct product{out, outputs, pitch};
    launch_wgmma_product(product, in, weights, rows, columns, choose_wgmma_tile(product, rows), stream);
    return;
  }
  const Plan& plan = this->plan(outputs, columns, pitch);
  auto weights_layout = layout(CUDA_R_16BF, outputs, columns, columns);
  auto in_layout = layout(CUDA_R_16BF, rows, columns, columns);
  auto out_layout = layout(CUDA_R_32F, rows, outputs, pitch);
  auto product = plan.product;
  const float one = 1, zero = 0;
  const cublasStatus_t status =
      cublasLtMatmul(handle_.get(), &product, &one, weights, &weights_layout, in, &in_layout, &zero, out, &out_layout,
                     out, &out_layout, &plan.algorithm, nullptr, 0, stream);
  if (status != CUBLAS_STATUS_SUCCESS)
    fail(status, in_words(outputs, columns) + " for " + std::to_string(rows) + " rows");
}

void Gemm::multiply_qkv(const RopeOutput& output, const __nv_bfloat16* in, const __nv_bfloat16* weights, int rows,
                        int columns, float* scratch, cudaStream_t stream) {
  if (qkv_scratch(1, output.head_dim, output.width()) == 0) {
    const RopeProduct product{output};
    launch_wgmma_product(product, in, weights, rows, columns, choose_wgmma_tile(product, rows), stream);
    return;
  }
  multiply(scratch, in, weights, rows, output.width(), columns, stream);
  launch_rope(scratch, output, rows, stream);
}

std::size_t Gemm::qkv_scratch(int rows, int head_dim, int width) const {
  if (uses_wgmma_ && head_dim % 128 == 0) return 0;
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
}

void Gemm::multiply_geglu(__nv_bfloat16* out, const __nv_bfloat16* in, const __nv_bfloat16* gate_up, int rows,
                          int intermediate, int columns, float* scratch, cudaStream_t stream, int pitch) {
  if (pitch == 0) pitch = intermediate;
  if (geglu_scratch(1, intermediate) == 0) {
    const GegluProduct product{out, intermediate, pitch};
    launch_wgmma_product(product, in, gate_up, rows, columns, choose_wgmma_tile(product, rows), stream);
    return;
  }
  for (int first = 0; first < rows; first += kScratchRows) {
    const int count = std::min(kScratchRows, rows - first);
    const std::size_t row = static_cast<std::size_t>(first);
    multiply(scratch, in + row * static_cast<std::size_t>(columns), gate_up, count, 2 * intermediate, columns, stream);
    launch_activation(scratch, count, intermediate, out + row * static_cast<std::size_t>(pitch), pitch, stream);
  }
}

std::size_t Gemm::geglu_scratch(int rows, int intermediate) const {
  if (uses_wgmma_) return 0;
  return 2 * static_cast<std::size_t>(std::min(rows, kScratchRows)) * static_cast<std::size_t>(intermediate);
}

}  // namespace gemma
