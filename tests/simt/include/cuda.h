#pragma once

// Tensor maps: boxes of up to five dimensions that the copy engine fetches.

#include <cstdint>

using cuuint32_t = std::uint32_t;
using cuuint64_t = std::uint64_t;

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct alignas(64) CUtensorMap {
  const char* address;
  std::uint32_t rank;
  std::uint32_t box[5];
  std::uint64_t sizes[5];
  std::uint64_t strides[5];  // bytes
};

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* element_strides, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

namespace simt {

/// Copies a box of a matrix in bf16 to shared memory, with the 16-byte units swizzled within 128 bytes; zeros where the
/// box lies outside.
/// @return bytes of the box
std::uint32_t copy_box(void* to, const CUtensorMap& map, const int* coordinates);
std::uint32_t box_bytes(const CUtensorMap& map);

}  // namespace simt
