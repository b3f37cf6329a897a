#pragma once

// Runs CUDA kernels on the CPU, so that tests can follow them where there is no GPU. Every thread of a block is a
// fiber; all fibers share one thread of the host, and go on until they must wait: for the rest of their warp or block,
// or for memory that others write. So a run is repeatable, and GEMMA_SIMT_SEED=n makes another one of it.
//
// What it finds: wrong results, reads of memory that nothing was written to (all memory begins as not-a-number), blocks
// that wait for ever, warps whose threads disagree about where they meet, copies that are misaligned, leave shared
// memory, or are looked at too early (they arrive at random times). What it cannot find: missing fences, data races
// between threads that happen to run in a good order, and anything about speed.
//
// Kernels are compiled by the host's compiler as C++, with include/ in the place of CUDA's headers and kernels/ in the
// place of those of our own that are made of machine instructions.

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// What the GPU is that is played: the compute capability that the kernels were compiled for (90: 9.0), and as many
/// multiprocessors as GEMMA_SIMT_MULTIPROCESSORS says.
int compute_capability();
int multiprocessors();
int shared_memory_of_block();  ///< bytes that a block can ask for

// --- for the host ---

struct Launch {
  Index grid, block;
  std::size_t shared_bytes = 0;
  bool is_cooperative = false;   ///< all blocks run at once; only such blocks may wait for each other
  std::function<void()> thread;  ///< what every thread does
};

/// Runs a grid to its end. Ends the program with a message where a kernel does what it must not.
void run(const Launch& launch);

// --- for threads of a kernel ---

/// Ends the program with a message that names the thread, if `holds` is false.
void check(bool holds, const char* what);

/// Lets others go on before memory is looked at again.
void poll();

/// Waits for `threads` threads of the block at one of its 16 barriers; 0: for all that have not ended.
void wait_at_barrier(int name, unsigned threads);
void arrive_at_barrier(int name, unsigned threads);

char* shared_memory();
/// A place in shared memory as kernels count them, in bytes.
std::uint32_t shared_address(const void* place);
char* shared_place(std::uint32_t address);

/// Does something later, or when the block would have to wait for it otherwise.
void defer(std::function<void()> work);

/// Something the calling thread does asynchronously: in groups, in order.
void defer_in_thread(std::function<void()> work);
void close_group();
void finish_groups(std::size_t but);  ///< all but the latest `but`
/// Hands over all of the thread's unfinished work to defer(), and `then` after it.
void defer_rest_of_thread(std::function<void()> then);

/// Meets the other threads of `lanes` neighbouring ones: the last that comes calls meet(records) with what each of them
/// has brought; nullptr of those that have ended.
void gather(unsigned lanes, void* record, void (*meet)(void* const* records));

/// The same with types. @param meet  without captures: meet(Record* const* records)
template <unsigned kLanes, class Record, class Meet>
void together(Record& record, const Meet& /*meet*/) {
  gather(kLanes, &record, [](void* const* records) { Meet{}(reinterpret_cast<Record* const*>(records)); });
}

}  // namespace simt

extern simt::Index threadIdx, blockIdx, blockDim, gridDim;
