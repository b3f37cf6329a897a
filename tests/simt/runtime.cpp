// The CUDA runtime and the parts of the driver that are used, on the CPU.

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include "cuda.h"
#include "cuda_runtime.h"

using Work = std::vector<std::function<void()>>;

struct CUstream_st {
  bool is_capturing = false;
  Work captured;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};

namespace simt {
namespace {

constexpr std::size_t kTotalMemory = std::size_t{8} << 30;

/// What has been allocated, by address.
struct Memory {
  std::mutex mutex;
  std::map<void*, std::size_t> sizes;
  std::size_t used = 0;
};

Memory& memory() {
  static Memory of_gpu;
  return of_gpu;
}

/// Dynamic shared memory that kernels may be launched with, where it is not the usual 48 KB.
struct SharedLimits {
  std::mutex mutex;
  std::map<const void*, int> bytes;
};

SharedLimits& shared_limits() {
  static SharedLimits limits;
  return limits;
}

}  // namespace

void submit(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->is_capturing) {
    stream->captured.push_back(std::move(work));
  } else {
    work();
  }
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > shared_memory_of_block()) return cudaErrorInvalidValue;
  const std::lock_guard lock(shared_limits().mutex);
  shared_limits().bytes[kernel] = value;
  return cudaSuccess;
}

cudaError_t launch(const void* kernel, const cudaLaunchConfig_t& config, std::function<void()> thread) {
  Launch launch{config.gridDim, config.blockDim, config.dynamicSmemBytes, false, std::move(thread)};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeCooperative)
      launch.is_cooperative = config.attrs[i].val.cooperative != 0;
  }
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  if (blocks == 0 || threads == 0 || threads > 1024) return cudaErrorInvalidValue;
  if (launch.is_cooperative && blocks > static_cast<unsigned>(multiprocessors())) return cudaErrorInvalidValue;
  std::size_t limit = 48 << 10;
  {
    const std::lock_guard lock(shared_limits().mutex);
    if (const auto found = shared_limits().bytes.find(kernel); found != shared_limits().bytes.end())
      limit = std::max(limit, static_cast<std::size_t>(found->second));
  }
  if (launch.shared_bytes > limit) return cudaErrorInvalidValue;
  submit(config.stream, [launch = std::move(launch)] { run(launch); });
  return cudaSuccess;
}

std::uint32_t box_bytes(const CUtensorMap& map) {
  std::uint32_t bytes = 2;
  for (std::uint32_t i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

std::uint32_t copy_box(void* to, const CUtensorMap& map, const int* coordinates) {
  const std::uint32_t bytes = box_bytes(map);
  const std::uint32_t begin = shared_address(to);
  check(begin % 128 == 0, "a box is copied to a place that is not aligned to 128 bytes");
  shared_address(static_cast<char*>(to) + bytes);
  for (std::uint32_t unit = 0; unit < bytes / 16; ++unit) {
    // Which elements these are: the innermost dimension first.
    std::uint32_t rest = unit * 8;
    const char* from = map.address;
    std::int64_t there = 8;
    for (std::uint32_t i = 0; i < map.rank; ++i) {
      const std::int64_t at = coordinates[i] + static_cast<std::int64_t>(rest % map.box[i]);
      rest /= map.box[i];
      const auto size = static_cast<std::int64_t>(map.sizes[i]);
      if (i == 0) {
        there = std::clamp<std::int64_t>(size - at, 0, 8);
        from += 2 * at;
      } else {
        if (at < 0 || at >= size) there = 0;
        from += at * static_cast<std::int64_t>(map.strides[i]);
      }
    }
    const std::uint32_t address = begin + 16 * unit;
    char* place = shared_place(address ^ (address >> 7 & 7) << 4);
    std::memset(place, 0, 16);
    if (there > 0) std::memcpy(place, from, static_cast<std::size_t>(2 * there));
  }
  return bytes;
}

}  // namespace simt

const char* cudaGetErrorName(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
  }
  return "an unknown error";
}
const char* cudaGetErrorString(cudaError_t code) { return cudaGetErrorName(code); }

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const std::lock_guard lock(simt::memory().mutex);
  if (bytes > simt::kTotalMemory - simt::memory().used) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  simt::memory().sizes[*memory] = bytes;
  simt::memory().used += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard lock(simt::memory().mutex);
  const auto found = simt::memory().sizes.find(memory);
  if (found == simt::memory().sizes.end()) return cudaErrorInvalidValue;
  simt::memory().used -= found->second;
  simt::memory().sizes.erase(found);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  const std::lock_guard lock(simt::memory().mutex);
  *total = simt::kTotalMemory;
  *available = simt::kTotalMemory - simt::memory().used;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  simt::submit(stream, [=] { cudaMemcpy(to, from, bytes, kind); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  simt::submit(stream, [=] {
    for (std::size_t i = 0; i < height; ++i)
      std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  simt::submit(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->is_capturing) return cudaErrorInvalidValue;
  stream->is_capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream->is_capturing) return cudaErrorInvalidValue;
  stream->is_capturing = false;
  *graph = new CUgraph_st{std::exchange(stream->captured, {})};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const auto& work : graph->work) simt::submit(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "a GPU played on the CPU");
  properties->major = simt::compute_capability() / 10;
  properties->minor = simt::compute_capability() % 10;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::multiprocessors();
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = simt::compute_capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = simt::compute_capability() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = simt::shared_memory_of_block();
      break;
  }
  return cudaSuccess;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  if (rank < 1 || rank > 5 || std::bit_cast<std::uintptr_t>(address) % 16 != 0 || box[0] != 64)
    return CUDA_ERROR_INVALID_VALUE;
  *map = {};
  map->address = static_cast<const char*>(address);
  map->rank = rank;
  for (cuuint32_t i = 0; i < rank; ++i) {
    map->sizes[i] = sizes[i];
    map->box[i] = box[i];
    map->strides[i] = i == 0 ? 2 : strides[i - 1];
    if (box[i] < 1 || box[i] > 256 || sizes[i] < 1 || (i > 0 && map->strides[i] % 16 != 0))
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  if (std::string_view(name) != "cuTensorMapEncodeTiled") return cudaErrorInvalidValue;
  *function = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
