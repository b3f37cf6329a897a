// How fast the kernels of prompt reading are, each by itself: matrix products in every tile beside cuBLASLt, attention,
// and what only moves memory. For people who change them; gemma-bench measures the whole.
//
//   prompt_speed [products] [attention] [memory]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "activation.cuh"
#include "cuda_error.h"
#include "device/attention_mask.h"
#include "gemm.h"
#include "gemma/error.h"
#include "kv_commit.cuh"
#include "norm.cuh"
#include "prompt_attention.cuh"
#include "rope.cuh"
#include "wgmma_gemm.cuh"

namespace gemma {
namespace {

using Bf16 = __nv_bfloat16;

struct Shape {
  const char* name;
  int hidden, intermediate, heads, kv_heads, head_dim;

  int width() const { return (heads + 2 * kv_heads) * head_dim; }
};
constexpr Shape kShapes[] = {{"2b", 2304, 9216, 8, 4, 256}, {"9b", 3584, 14336, 16, 8, 256}};

template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size) : size_(size) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, size * sizeof(T)));
    memory_.reset(static_cast<T*>(memory));
    check_cuda(cudaMemset(memory, 0, size * sizeof(T)));
  }
  T* get() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* memory) const { cudaFree(memory); }
  };
  std::size_t size_;
  std::unique_ptr<T, Free> memory_;
};

/// What tensor cores do depends on the numbers: they take less power with zeros.
__global__ void fill_kernel(Bf16* values, std::size_t size, float deviation, unsigned seed) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride) {
    float sum = 0;
    unsigned state = static_cast<unsigned>(i) * 2654435761u + seed;
    for (int j = 0; j < 4; ++j) {
      state ^= state >> 15;
      state *= 2246822519u;
      state ^= state >> 13;
      sum += static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    }
    values[i] = __float2bfloat16_rn(sum * 1.732f * deviation);
  }
}

Buffer<Bf16> random_values(std::size_t size, float deviation, unsigned seed) {
  Buffer<Bf16> buffer(size);
  fill_kernel<<<1024, 256>>>(buffer.get(), size, deviation, seed);
  check_cuda(cudaGetLastError());
  check_cuda(cudaDeviceSynchronize());
  return buffer;
}

std::size_t z(int value) { return static_cast<std::size_t>(value); }

/// Milliseconds of one of many launches in a row: the least of three measurements.
double measure(cudaStream_t stream, const std::function<void()>& launch) {
  cudaEvent_t begin, end;
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  const auto time = [&](int count) {
    check_cuda(cudaEventRecord(begin, stream));
    for (int i = 0; i < count; ++i) launch();
    check_cuda(cudaEventRecord(end, stream));
    check_cuda(cudaEventSynchronize(end));
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end));
    return static_cast<double>(ms) / count;
  };
  time(1);
  const int count = std::clamp(static_cast<int>(4 / time(2)), 2, 50);
  double least = time(count);
  for (int i = 0; i < 2; ++i) least = std::min(least, time(count));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return least;
}

template <class Product>
void compare(const std::string& what, const Product& product, const std::function<void()>& by_library, const Bf16* in,
             const Bf16* weights, int rows, int outputs, int columns, cudaStream_t stream) {
  const double flop = 2.0 * rows * outputs * columns;
  const auto rate = [&](double ms) { return flop / ms * 1e-9; };
  std::printf("%-18s %5d x %5d x %5d: cuBLASLt, with what follows, %4.0f TFLOP/s |", what.c_str(), rows, outputs,
              columns, rate(measure(stream, by_library)));
  if (has_wgmma()) {
    const int chosen = choose_wgmma_tile(product, rows);
    for (const int tile : wgmma_tiles<Product>()) {
      const double ms =
          measure(stream, [&] { launch_wgmma_product(product, in, weights, rows, columns, tile, stream); });
      const bool is_chosen = tile == chosen;
      std::printf(" %s%d: %.0f%s", is_chosen ? "[" : "", tile, rate(ms), is_chosen ? "]" : "");
    }
  }
  std::printf("\n");
}

void measure_products(cudaStream_t stream) {
  for (const Shape& shape : kShapes) {
    constexpr int kMaxRows = 8192;
    const int widest = std::max({shape.hidden, shape.intermediate, shape.heads * shape.head_dim});
    const auto in = random_values(z(kMaxRows) * widest, 1, 1);
    const auto weights = random_values(2 * z(shape.intermediate) * shape.hidden, 0.02f, 2);
    const Buffer<float> out(z(kMaxRows) * std::max(2 * shape.intermediate, shape.width()));
    const Buffer<Bf16> activated(z(kMaxRows) * shape.intermediate), q(z(kMaxRows) * shape.heads * shape.head_dim),
        k(z(kMaxRows) * shape.kv_heads * shape.head_dim), v(z(kMaxRows) * shape.kv_heads * shape.head_dim);
    const Buffer<int> position(kMaxRows);
    const Buffer<float2> rope(z(kMaxRows) * shape.head_dim / 2);
    std::vector<int> positions(kMaxRows);
    std::iota(positions.begin(), positions.end(), 0);
    check_cuda(cudaMemcpy(position.get(), positions.data(), positions.size() * sizeof(int), cudaMemcpyHostToDevice));
    const RopeOutput output{position.get(), rope.get(), 0.0625f, shape.heads, shape.kv_heads,
                            shape.head_dim, q.get(),    k.get(), v.get()};

    for (const int rows : {64, 512, 2048, 4096, 8192}) {
      Gemm library(rows, false);
      const auto plain = [&](const char* name, int outputs, int columns) {
        compare(
            std::string(shape.name) + " " + name, PlainProduct{out.get(), outputs, outputs},
            [&] { library.multiply(out.get(), in.get(), weights.get(), rows, outputs, columns, stream); }, in.get(),
            weights.get(), rows, outputs, columns, stream);
      };
      compare(
          std::string(shape.name) + " qkv", RopeProduct{output},
          [&] { library.multiply_qkv(output, in.get(), weights.get(), rows, shape.hidden, out.get(), stream); },
          in.get(), weights.get(), rows, shape.width(), shape.hidden, stream);
      plain("attention out", shape.hidden, shape.heads * shape.head_dim);
      compare(
          std::string(shape.name) + " gate and up",
          GegluProduct{activated.get(), shape.intermediate, shape.intermediate},
          [&] {
            library.multiply_geglu(activated.get(), in.get(), weights.get(), rows, shape.intermediate, shape.hidden,
                                   out.get(), stream);
          },
          in.get(), weights.get(), rows, 2 * shape.intermediate, shape.hidden, stream);
      plain("down", shape.hidden, shape.intermediate);
      plain("gate and up, bare", 2 * shape.intermediate, shape.hidden);
    }
  }
}

/// The chunk [position, position + rows) of a text.
void measure_attention(const Shape& shape, int position, int rows, int window, cudaStream_t stream) {
  const bool is_local = window != kNoWindow;
  const std::size_t kv_width = z(shape.kv_heads) * shape.head_dim;
  const auto q = random_values(z(rows) * shape.heads * shape.head_dim, 3 / std::sqrt(float(shape.head_dim)), 3);
  const auto k = random_values(z(rows) * kv_width, 1, 4), v = random_values(z(rows) * kv_width, 1, 5);
  const int pages = (position + rows + 63) / 64;
  const int ring_slots = 4160;
  const auto memory = random_values(2 * kv_width * (is_local ? z(ring_slots) : 64 * z(pages)), 1, 6);
  std::vector<int> table(z(pages));
  std::iota(table.begin(), table.end(), 0);
  const Buffer<int> page_table(table.size());
  check_cuda(cudaMemcpy(page_table.get(), table.data(), table.size() * sizeof(int), cudaMemcpyHostToDevice));
  const PromptSequence sequence{0, rows, position, 0, 0};
  const Buffer<PromptSequence> sequences(1);
  check_cuda(cudaMemcpy(sequences.get(), &sequence, sizeof sequence, cudaMemcpyHostToDevice));
  const Buffer<Bf16> out(q.size());
  const LayerCache cache{memory.get(), is_local,         0,    1, shape.kv_heads, shape.head_dim,
                         ring_slots,   page_table.get(), pages};

  double seen = 0;
  for (int row = position; row < position + rows; ++row) seen += std::min(row + 1, window);
  const double flop = 4.0 * shape.heads * shape.head_dim * seen;
  std::printf("%s %s attention of %5d rows at %5d:", shape.name, is_local ? "local " : "global", rows, position);
  for (const bool uses_wgmma : {false, true}) {
    if (uses_wgmma && !has_wgmma()) continue;
    const double ms = measure(stream, [&] {
      launch_prompt_attention(
          {shape.heads, window, 50, q.get(), k.get(), v.get(), cache, sequences.get(), out.get(), uses_wgmma}, 1, rows,
          stream);
    });
    std::printf("  %s %8.1f us %4.0f TFLOP/s", uses_wgmma ? "wgmma" : "mma", 1e3 * ms, flop / ms * 1e-9);
  }
  std::printf("\n");
}

void measure_memory(const Shape& shape, int rows, cudaStream_t stream) {
  const Buffer<float> x(z(rows) * shape.hidden), y(z(rows) * shape.hidden), norm(z(shape.hidden));
  const Buffer<float> gate_up(2 * z(rows) * shape.intermediate);
  const Buffer<Bf16> out(z(rows) * shape.intermediate);
  const auto print = [&](const char* what, double bytes, const std::function<void()>& launch) {
    const double ms = measure(stream, launch);
    std::printf("%s %-16s of %5d rows: %7.1f us, %5.0f GB/s\n", shape.name, what, rows, 1e3 * ms, bytes / ms * 1e-6);
  };
  print("add_normalized", 14.0 * rows * shape.hidden, [&] {
    launch_add_normalized(y.get(), norm.get(), norm.get(), 1e-6f, rows, shape.hidden, x.get(), out.get(), stream);
  });
  print("normalize", 6.0 * rows * shape.hidden,
        [&] { launch_normalize(x.get(), nullptr, norm.get(), 1e-6f, rows, shape.hidden, out.get(), stream); });
  print("activation", 10.0 * rows * shape.intermediate,
        [&] { launch_activation(gate_up.get(), rows, shape.intermediate, out.get(), shape.intermediate, stream); });

  const std::size_t kv = z(rows) * shape.kv_heads * shape.head_dim;
  const Buffer<Bf16> k(kv), v(kv), ring(2 * kv);
  const PromptSequence sequence{0, rows, 0, 0, 0};
  const Buffer<PromptSequence> sequences(1);
  check_cuda(cudaMemcpy(sequences.get(), &sequence, sizeof sequence, cudaMemcpyHostToDevice));
  const LayerCache cache{ring.get(), true, 0, 1, shape.kv_heads, shape.head_dim, (rows + 63) / 64 * 64, nullptr, 0};
  print("kv_commit", 8.0 * static_cast<double>(kv),
        [&] { launch_kv_commit(k.get(), v.get(), cache, sequences.get(), 1, rows, stream); });
}

int run(int argc, char** argv) {
  const auto wants = [&](const char* what) {
    return argc < 2 || std::any_of(argv + 1, argv + argc, [&](const char* word) { return std::string(word) == what; });
  };
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (wants("attention")) {
    for (const Shape& shape : kShapes) {
      for (const int window : {kNoWindow, 4096}) {
        for (const int rows : {512, 2048, 4096, 8192, 16384, 32768}) measure_attention(shape, 0, rows, window, stream);
        measure_attention(shape, 28672, 4096, window, stream);
      }
    }
  }
  if (wants("memory")) {
    for (const Shape& shape : kShapes) {
      for (const int rows : {512, 4096}) measure_memory(shape, rows, stream);
    }
  }
  if (wants("products")) measure_products(stream);
  cudaStreamDestroy(stream);
  return 0;
}

}  // namespace
}  // namespace gemma

int main(int argc, char** argv) {
  try {
    return gemma::run(argc, argv);
  } catch (const gemma::Error& error) {
    std::fprintf(stderr, "prompt_speed: %s\n", error.what());
    return 1;
  }
}
