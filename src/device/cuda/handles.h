#pragma once

#include <cuda_runtime.h>

#include <cassert>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "cuda_error.h"

namespace gemma::cuda {

/// A stream of work on the GPU.
class Stream {
 public:
  Stream() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
  }

  operator cudaStream_t() const { return stream_.get(); }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_.get())); }

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> stream_;
};

/// A point in a stream that can be waited for, asleep: a waiting thread takes no processor time.
class Event {
 public:
  Event() {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    event_.reset(event);
  }

  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_.get(), stream)); }
  void synchronize() const { check_cuda(cudaEventSynchronize(event_.get())); }

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> event_;
};

/// A point in a stream that knows when it was reached.
class TimedEvent {
 public:
  TimedEvent() {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event));
    event_.reset(event);
  }

  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_.get(), stream)); }

  /// Waits for `end`.
  double seconds_until(const TimedEvent& end) const {
    check_cuda(cudaEventSynchronize(end.event_.get()));
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, event_.get(), end.event_.get()));
    return 1e-3 * milliseconds;
  }

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> event_;
};

/// An array in the GPU's memory. Its contents are not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, size * sizeof(T)));
    memory_.reset(static_cast<T*>(memory));
  }

  T* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* memory) const { cudaFree(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t size_ = 0;
};

/// Fills a part of a buffer from the host's memory. When it returns, all of it has arrived: cudaMemcpy alone may return
/// before that, and a Stream does not wait for it.
/// @throws Error if the copy fails
template <class T>
void upload(const Buffer<T>& to, std::size_t first, std::span<const T> from) {
  assert(first + from.size() <= to.size());
  check_cuda(cudaMemcpy(to.data() + first, from.data(), from.size_bytes(), cudaMemcpyHostToDevice));
  check_cuda(cudaStreamSynchronize(nullptr));
}

/// An array in the host's memory that the GPU can copy from and to while other work goes on. Zeros at first.
template <class T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, size * sizeof(T)));
    memory_.reset(static_cast<T*>(memory));
    std::uninitialized_value_construct_n(memory_.get(), size);
  }

  T* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  std::span<T> span() const { return {memory_.get(), size_}; }
  T& operator[](std::size_t index) const {
    assert(index < size_);
    return memory_.get()[index];
  }

 private:
  static_assert(std::is_trivially_destructible_v<T>);
  struct Free {
    void operator()(T* memory) const { cudaFreeHost(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t size_ = 0;
};

/// Work that was captured once and can be launched again and again.
class Graph {
 public:
  Graph() = default;

  /// Captures what `work(stream)` launches.
  template <class Work>
  static Graph capture(cudaStream_t stream, const Work& work) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t captured = nullptr;
    try {
      work(stream);
    } catch (...) {
      cudaStreamEndCapture(stream, &captured);
      if (captured != nullptr) cudaGraphDestroy(captured);
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &captured));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t code = cudaGraphInstantiate(&executable, captured, 0);
    cudaGraphDestroy(captured);
    check_cuda(code);
    Graph graph;
    graph.graph_.reset(executable);
    return graph;
  }

  explicit operator bool() const { return graph_ != nullptr; }
  void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(graph_.get(), stream)); }

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroy> graph_;
};

}  // namespace gemma::cuda
